"""Training and evaluation of one model: `lit-mnist fit`, `validate`, `test`, `predict`.

Files:
    command.py        the command line of these commands
    configuration.py  LightningCLI on this project's classes: parses flags, makes model, data and Trainer
    config_files.py   packaged and user's YAML files
    config_errors.py  one line for what is wrong in a configuration
    fit.py            one training as one MLflow run, new or resumed
    evaluate.py       validation, test and prediction with a run's checkpoint
    stages.py         trainings that an experiment needs, each done once
    report.py         the figures and tables at the end of a fit or a test
    progress.py       the progress of a training on the terminal
    gc_freeze.py      cheaper garbage collection during training
    checkpoints/      atomic files, choosing where to resume, exact state
    lightning/        everything that uses a private name of Lightning
"""
