"""What surrounds a fit: configuration, checkpoints, signals, the Trainer's defaults, the end's figures."""
