"""Training, evaluation and their configuration.

Files:
    command.py        `fit`, `validate`, `test`, `predict`, `export`: arguments and help
    config_files.py   configuration files, by name or by path
    configuration.py  FitOptions and LitCLI: flags and files to model, data and Trainer
    config_errors.py  errors of jsonargparse, Lightning and torch about wrong values, as one line
    checks.py         what `fit` refuses before there is a run
    fit.py            one training as one MLflow run, new or resumed
    resumable.py      a resumable run from Python, with an ordinary Trainer
    evaluate.py       a run's checkpoint on validation or test images, or on image files
    description.py    the descriptions of runs and experiments in MLflow's UI
    export.py         a run's network as a pt2 or ONNX file, or as an MLflow model
    report.py         the table and the figures at the end
    progress.py       progress display during training
    stages.py         trainings that are done once and shared by experiments and sweeps
    gc_freeze.py      keeps Python's garbage collector from scanning the objects that imports create
    checkpoints/      atomic files, the point to resume from, what is left to train, exact state, artifacts
    lightning/        everything that uses private names of Lightning
"""
