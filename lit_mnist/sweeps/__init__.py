"""Hyperparameter sweeps: `lit-mnist sweep`.

- `command.py`: the arguments of `lit-mnist sweep` and its verbs.
- `plan.py`: `--plan`, which checks a sweep and estimates its time and disk.
- `confirm.py`: `confirm`, which trains the best points with further seeds.
- `timing.py`: estimates the cost of a training from a few steps.
- `resources.py`: the cores and GPUs of this machine or job, and their division between workers.
- `search/`: the specification, the search space, samplers and pruners.
- `study/`: the state that all workers share: storage, locks, leases of trials.
- `workers/`: the processes that train trials, and the command that starts and watches them.
- `results/`: progress, status, the best configuration, figures.

Imports run from the bottom of this list to `search/`: `workers` and `results` use `study`, which uses `search`.
"""
