"""The state of a study that its workers share, on one machine or many.

- `storage`: opens the storage of studies, a journal file or a database.
- `retry`: repeats calls while the database is unreachable.
- `locks`: locks of a study and of a journal file, which are freed when their process dies.
- `study`: creates a study from its specification, and checks whether it is finished.
- `leases`: which worker works on which trial, taking over trials of dead workers, and all limits of this.
- `heartbeats`: how a worker shows other machines that it is alive.
- `job_time`: whether a SLURM job has enough time left to begin a trial.
- `study_run`: the MLflow run of a study, to which all its sweeps write.
- `trial_runs`: the MLflow runs of its trials.
- `summary`: a read-only snapshot, for progress, tables and figures.

What is stored, as Optuna's user attributes:

- of a study: `spec` (the YAML), `stored` (the settings that must not change), `trials` (total number),
  `longest` (validations of the longest training), `experiment` and `run_id` (its MLflow run), `spent` (seconds),
  `summed` (the number of trials when it was last summarised).
- of a trial: `owner`, `heartbeat`, `deaths`, `released` (see `leases`), `point` (hyperparameters by flag), `begun`
  (a run may exist), `runs` (MLflow ids by seed), `validations` (by seed, if not reported), `pruned` and `reason`
  (why), `values` (objectives by seed), `seconds`, `first_save` (seconds to its first checkpoint or validation).
"""
