"""A run's life in MLflow: how it is opened, what is logged to it, and how that reaches the tracking store.

- `run.py`: open a new run, resume one, or add to one; its status while it runs and when it ends
- `active_run.py`: `Run`, an open run, with everything that can be logged to it
- `logger.py`: Lightning's logger, which logs to a `Run`
- `figures.py`: figures that runs log
- `provenance.py`: tags for user, command, code, packages and machine
- `store.py`: which tracking store is used, and how it is opened
- `folder.py`: a run's folder on this machine: `run.json`, lock, reserved disk space
- `process.py`, `liveness.py`: identity of processes; heartbeats, and whether a run's process is alive
- `pages.py`: addresses of pages in MLflow's UI
- `descriptions.py`: Markdown for the descriptions that the UI shows
- `mlflow_private.py`: everything that relies on MLflow's internals
- `journal/`: the write-ahead journal, and the thread that sends it to the store
- `queries/`: runs are found, listed, compared and reaped

A metric's way: `logger.py` → `active_run.py` (`Run.log_metrics` writes it to the journal) → `journal/uploader.py`
(a thread, every three seconds) → `journal/mlflow_writer.py` (`MlflowClient.log_batch`).
"""
