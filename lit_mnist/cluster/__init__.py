"""SLURM: submit jobs that requeue themselves until their work is done, and list them.

- `job.py`: a job's folder, and commands of SLURM.
- `snapshot.py`: a copy of the code, so that a job runs the code at submission.
- `script.py`: the batch script that is submitted.
- `submit.py`: `lit-mnist submit`.
- `jobs.py`: `lit-mnist jobs`.

`lit_mnist.slurm`, which training and sweeps use too, describes the allocation of the running process.
"""
