"""Checkpoints that survive crashes, and exact resume from a checkpoint.

Files:
    files.py         atomic writing, reading and checking of checkpoint files
    resume_point.py  which run and which checkpoint to resume, the same on all ranks
    limits.py        whether a resumed training has anything left to do
    exact_resume.py  the callback that saves and restores the exact state of a training
    artifacts.py     which checkpoints are logged to MLflow, and when
"""
