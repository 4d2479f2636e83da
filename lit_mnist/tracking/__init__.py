"""Runs in MLflow: opening runs, logging to them, and sending the data to the tracking store.

- `run.py`: opens a new run, resumes one, or adds to one; sets its status
- `active_run.py`: `Run`, an open run, with all logging methods
- `logger.py`: Lightning's logger, which logs to a `Run`
- `figures.py`: figures that runs log
- `provenance.py`: tags for user, command, code, packages and machine
- `store.py`: finds and opens the tracking store
- `folder.py`: a run's folder on this machine: `run.json`, lock, reserved disk space
- `process.py`, `liveness.py`: identity of processes; heartbeats, and whether a run's process is alive
- `pages.py`: addresses of pages in MLflow's UI
- `descriptions.py`: Markdown for the descriptions in the UI
- `mlflow_private.py`: everything that relies on MLflow's internals
- `journal/`: the write-ahead journal, and the thread that sends it to the store
- `queries/`: finding, listing, comparing and reaping runs

The path of a metric: `logger.py` → `active_run.py` (`Run.log_metrics` writes it to the journal) →
`journal/uploader.py` (a thread, every three seconds) → `journal/mlflow_writer.py` (`MlflowClient.log_batch`).
"""
