"""`lit-mnist sweep confirm NAME`: train the leaders of a study again, with seeds that the search has not used.

A confirmation is a study of its own in the same storage, named `NAME/confirm-1`, whose points are the leaders: its
trials are leased, interrupted and resumed like any others, and its runs are in the study's MLflow experiment. It
is not part of the study itself, whose sampler would otherwise learn from it, and whose number of trials it would
change.

The seeds are new ones, because the leaders are those for which the seeds of the search were lucky.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage

from lit_mnist.errors import UsageError, UserError
from lit_mnist.sweeps.results.confirmation import read_confirmation, verdict
from lit_mnist.sweeps.results.status import load_summary
from lit_mnist.sweeps.search.spec import Spec, parse_spec
from lit_mnist.sweeps.study.storage import (
    confirmation_names,
    confirmation_number,
    default_storage,
    open_storage,
    open_study,
)
from lit_mnist.sweeps.study.study import (
    create_or_open_study,
    is_finished,
    stored_spec,
)
from lit_mnist.sweeps.study.summary import is_allowed, point
from lit_mnist.sweeps.workers.runner import run_spec
from lit_mnist.terminal import say


def confirm(name: str, top: int, seeds: int, workers: int, url: str | None) -> None:
    """Train the best points with further seeds, the same for each, and print which of them are tied.

    Seeds that an earlier confirmation has trained are not repeated, and one that was interrupted is continued.

    Args:
        name: The study.
        top: How many points.
        seeds: How many seeds.
        workers: How many processes train them.
        url: Where the study is kept; None for the default storage.

    Raises:
        UserError: there is no such study, it has several objectives, or no complete trial.
        Interrupted: a signal came; the same command continues.

    """
    url = url or default_storage()
    storage = open_storage(url)
    study = open_study(storage, name)
    summary = load_summary(storage, name)
    if len(summary.objectives) > 1:
        raise UsageError(f"study {name} has {len(summary.objectives)} objectives, and confirm compares by one")
    # The leaders, best first, as points of a specification.
    spec = stored_spec(study)
    complete = sorted(filter(is_allowed, summary.complete), key=lambda trial: (summary.cost(trial), trial.number))
    leaders: dict[str, Mapping[str, Any]] = {}
    for trial in complete:
        # What `also` derives from a parameter is no part of a point in a specification.
        given = {key: value for key, value in point(trial).items() if key in spec.space.parameters}
        # Two trials may have the same point, since samplers repeat themselves; the better of them stands for it.
        leaders.setdefault(json.dumps(given, sort_keys=True), given)
    if not leaders:
        raise UserError(f"study {name} has no complete trial to confirm ({summary.counts()})")
    # Seeds above those of the search, so that none of these can be one that a leader was lucky with.
    wanted = range(max(spec.seeds) + 1, max(spec.seeds) + 1 + seeds)
    for confirmation in _confirmations(storage, study, spec, list(leaders.values())[:top], wanted):
        run_spec(confirmation, workers, url)
    for line in verdict(summary, read_confirmation(storage, name)):
        say(line)


def _confirmations(
    storage: BaseStorage, study: optuna.Study, spec: Spec, points: Sequence[Mapping[str, Any]], seeds: range
) -> list[Spec]:
    """The specifications of confirmations that are unfinished, and of new ones for what none of them covers."""
    name, unfinished = study.study_name, []
    # With which seeds each point is trained already, by any confirmation of the study.
    covered: dict[str, set[int]] = {}
    existing = confirmation_names(storage, name)
    for other in existing:
        found = stored_spec(open_study(storage, other))
        if not is_finished(open_study(storage, other)):
            unfinished.append(found)
        for given in found.points:
            covered.setdefault(json.dumps(given, sort_keys=True), set()).update(found.seeds)
    # Points that lack the same seeds go into one new confirmation; usually that is all of them.
    missing: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    for given in points:
        done = covered.get(json.dumps(given, sort_keys=True), set())
        missing.setdefault(tuple(seed for seed in seeds if seed not in done), []).append(given)
    missing.pop((), None)
    new, last = [], max(map(confirmation_number, existing), default=0)
    for number, (left, group) in enumerate(missing.items(), last + 1):
        kept = {key: value for key, value in spec.content.items() if key not in ("repeats", "hours", "pruner")}
        # The study's own specification, with other points and seeds: config, flags, space and objectives stay.
        content = {
            **kept,
            "study": f"{name}/confirm-{number}",
            "points": [dict(given) for given in group],
            "trials": len(group),
            "seeds": list(left),
            # Every trial is a given point. A grid keeps its sampler, to which alone its `points` mean something.
            "sampler": "grid" if spec.sampler == "grid" else "random",
        }
        confirmation = parse_spec(yaml.safe_dump(content, sort_keys=False), str(content["study"]))
        # Created before anything is trained: an interrupted command finds it as an unfinished one.
        create_or_open_study(storage, confirmation, confirms=study.user_attrs.get("run_id"))
        new.append(confirmation)
    return [*unfinished, *new]
