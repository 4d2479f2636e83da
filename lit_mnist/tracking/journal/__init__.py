"""A run's write-ahead journal, and its way into the tracking store.

- `journal.py`: the file of entries; what is written here survives the process
- `points.py`: metric points, and which of them a resume with another configuration has replaced
- `uploader.py`: the thread that sends the journal while training goes on
- `mlflow_writer.py`: how each kind of entry is sent to MLflow, and what a store will never accept
- `system_metrics.py`: samples of the machine's load
- `sync.py`: `lit-mnist sync`, which sends what is left from runs that were offline or lost their store
"""
