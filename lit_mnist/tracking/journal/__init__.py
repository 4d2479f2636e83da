"""A run's write-ahead journal, and the code that sends it to the tracking store.

- `journal.py`: the file of entries, which survive the process
- `points.py`: metric points, and which of them a resume with another configuration has replaced
- `uploader.py`: the thread that sends the journal during training
- `mlflow_writer.py`: sends each kind of entry to MLflow, and sorts out entries that a store never accepts
- `system_metrics.py`: samples of the machine's load
- `sync.py`: `lit-mnist sync`, which sends unsent entries of runs that were offline or lost their store
"""
