"""SLURM: submit jobs that requeue themselves until their work is done, and list them.

- `job.py`: a job's folder, its identity, and what SLURM and MLflow say about it.
- `snapshot.py`: a copy of the code, so that a job runs what was submitted.
- `script.py`: the batch script that is submitted.
- `submit.py`: `lit-mnist submit`.
- `jobs.py`: `lit-mnist jobs`.

`lit_mnist.slurm`, which training and sweeps use too, knows the allocation of the running process.
"""
