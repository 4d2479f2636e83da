"""Sweeps: search space, study, workers."""
