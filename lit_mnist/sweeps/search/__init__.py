"""The specification and the search space of a sweep.

- `spec_file.py`: the specification as a YAML file: every key, with its type and its default.
- `spec.py`: the specification as used by the program: reading, checks, comparison with a stored one.
- `parameters.py`: the parameters of a search space: number, choice, layer sizes.
- `space.py`: the search space: suggests points, lists a grid and the probe points.
- `sources.py`: trainings before a trial, each done once for all trials that share it.
- `samplers.py`: the sampler and the pruner of each trial, from Optuna.
- `validation.py`: checks before a sweep starts: builds the model of each probe point.
- `strict_model.py`: base class of the pydantic models, and their errors as one line.
- `optuna_private.py`: private names of Optuna, and differences between its versions.
"""
