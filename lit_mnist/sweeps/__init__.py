"""Hyperparameter sweeps: search spaces, studies that several processes work on, and what comes out of them."""
