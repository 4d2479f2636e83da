"""The configuration that repeats a trial."""

from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial

from lit_mnist.errors import UserError
from lit_mnist.sweeps.study.summary import StudySummary, runs
from lit_mnist.tracking.folder import CONFIG
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.queries.lookup import fetched
from lit_mnist.tracking.store import connect, find_store, one_line


def write_configs(found: StudySummary, trial: FrozenTrial, out: Path) -> list[Path]:
    """Write the whole configuration of each of the trial's runs; returns where.

    Args:
        found: The study.
        trial: One of its complete trials.
        out: The file of the first seed; those of others get its name with the seed.

    Raises:
        UserError: a run is gone, or another file is in the way.

    """
    paths = [out if n == 0 else out.with_stem(f"{out.stem}_seed_{seed}") for n, seed in enumerate(found.seeds)]
    mark = f"# Study {found.name}, "
    for path in paths:
        if path.exists() and not path.read_text().startswith(mark):
            raise UserError(f"{path} is not a configuration of this study's: move it, or take another --out")
    values = trial.user_attrs.get("values") or [trial.values]
    for path, seed, run_id, measured in zip(paths, found.seeds, runs(trial), values, strict=True):
        told = ", ".join(f"{goal} {value!r}" for goal, value in zip(found.objectives, measured, strict=True))
        head = f"{mark}trial {trial.number}, seed {seed}, run {run_id}: {told}\n"
        replace_text(path, head + yaml.safe_dump(_config(run_id), sort_keys=False, allow_unicode=True))
    return paths


def _config(run_id: str) -> dict[str, Any]:
    """A run's configuration, but for what belongs to a sweep alone: where it is tracked, and its quietness."""
    client = connect(find_store())
    try:
        with fetched(client, run_id, CONFIG) as file:
            fields: dict[str, Any] = yaml.safe_load(file.read_text())
    except Exception as error:  # each kind of artifact store has its own
        raise UserError(f"cannot read the configuration of run {run_id}: {one_line(error)}") from None
    fields.pop("tracking", None)
    fields["trainer"].pop("enable_progress_bar", None)
    return fields
