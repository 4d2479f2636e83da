"""Checkpoints that survive crashes, and a training that goes on from one as if it had never stopped.

Files:
    files.py         writes a checkpoint whole or not at all; reads and checks one
    resume_point.py  which run and which checkpoint to resume, agreed on by all ranks
    limits.py        whether a resumed training has anything left to do
    exact_resume.py  the callback that saves and restores the exact state of a training
    artifacts.py     which checkpoints are logged to MLflow, and when
"""
