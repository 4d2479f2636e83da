"""Every system of five papers on MNIST and Fashion-MNIST, in PyTorch Lightning, tracked in MLflow.

Imports run downwards only:
    cli.py       finds the command; each package has its arguments in `command.py`
    cluster/     SLURM: submit, requeue, job table
    papers/      one file per paper: experiments, claims, figures
    sweeps/      hyperparameter studies with Optuna
    training/    fit, evaluate, configuration, checkpoints
    tracking/    a run's life in MLflow
    models/      one file per architecture
    data/        datasets in memory, corruptions, download
    configs/     one YAML per experiment: `configs/zhang/cnn.yaml` is `--config zhang/cnn`

Used by all of them: `errors.py` and `guard.py` (exceptions to one line and an exit code), `terminal.py` (output),
`redaction.py` (passwords), `signals.py`, `slurm.py` (the job that a process runs in), `strict_yaml.py`,
`added_options.py` (options that stored runs do not have yet).
"""

__version__ = "0.2.0.dev0"
