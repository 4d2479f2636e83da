"""`lit-mnist sweep confirm NAME`: train the best points of a study again, with seeds that the search has not used.

A confirmation is a separate study in the same storage, named `NAME/confirm-1`, whose given points are the best
points of the first study. Its trials are leased, interrupted and resumed like any others, and its runs are in the
same MLflow experiment. It is not part of the first study, because it would affect that study's sampler and number
of trials.

The seeds are new, because the best points of the search were partly chosen by chance, for its own seeds.
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
from lit_mnist.sweeps.results.study_page import StudyPage
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

    Seeds of an earlier confirmation are not repeated, and an interrupted confirmation is continued.

    Args:
        name: The study.
        top: Number of points.
        seeds: Number of seeds.
        workers: Number of worker processes.
        url: Where the study is kept; None for the default storage.

    Raises:
        UserError: there is no such study, or it has several objectives or no complete trial.
        Interrupted: a signal came; the same command continues.

    """
    url = url or default_storage()
    storage = open_storage(url)
    study = open_study(storage, name)
    summary = load_summary(storage, name)
    if len(summary.objectives) > 1:
        raise UsageError(f"study {name} has {len(summary.objectives)} objectives, and confirm compares by one")
    # The best points first, in the form of a specification's points.
    spec = stored_spec(study)
    complete = sorted(filter(is_allowed, summary.complete), key=lambda trial: (summary.cost(trial), trial.number))
    leaders: dict[str, Mapping[str, Any]] = {}
    for trial in complete:
        # Values that `also` derives from a parameter are not part of a point in a specification.
        given = {key: value for key, value in point(trial).items() if key in spec.space.parameters}
        # Several trials may have the same point, since samplers may repeat points; the best one counts.
        leaders.setdefault(json.dumps(given, sort_keys=True), given)
    if not leaders:
        raise UserError(f"study {name} has no complete trial to confirm ({summary.counts()})")
    # Seeds above those of the search, so that none of them was used for choosing the points.
    wanted = range(max(spec.seeds) + 1, max(spec.seeds) + 1 + seeds)
    for confirmation in _confirmations(storage, study, spec, list(leaders.values())[:top], wanted):
        run_spec(confirmation, workers, url)
    for line in verdict(summary, read_confirmation(storage, name)):
        say(line)
    if "experiment_id" in study.user_attrs:  # a study of version 0.1 has no page until it is continued
        StudyPage(study, spec, f"lit-mnist sweep {summary.arguments}").finish(summary)
    say(f"next: lit-mnist sweep best {summary.arguments}")


def _confirmations(
    storage: BaseStorage, study: optuna.Study, spec: Spec, points: Sequence[Mapping[str, Any]], seeds: range
) -> list[Spec]:
    """The specifications of unfinished confirmations, and of new ones for points and seeds not covered yet."""
    name, unfinished = study.study_name, []
    # The seeds of each point in existing confirmations of the study.
    covered: dict[str, set[int]] = {}
    existing = confirmation_names(storage, name)
    for other in existing:
        found = stored_spec(open_study(storage, other))
        if not is_finished(open_study(storage, other)):
            unfinished.append(found)
        for given in found.points:
            covered.setdefault(json.dumps(given, sort_keys=True), set()).update(found.seeds)
    # Points that lack the same seeds, usually all points, are combined in one new confirmation.
    missing: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    for given in points:
        done = covered.get(json.dumps(given, sort_keys=True), set())
        missing.setdefault(tuple(seed for seed in seeds if seed not in done), []).append(given)
    missing.pop((), None)
    new, last = [], max(map(confirmation_number, existing), default=0)
    for number, (left, group) in enumerate(missing.items(), last + 1):
        kept = {key: value for key, value in spec.content.items() if key not in ("repeats", "hours", "pruner")}
        # The study's own specification with other points and seeds.
        content = {
            **kept,
            "study": f"{name}/confirm-{number}",
            "points": [dict(given) for given in group],
            "trials": len(group),
            "seeds": list(left),
            # All trials are given points. A grid keeps its sampler, because its space may have the key `points`.
            "sampler": "grid" if spec.sampler == "grid" else "random",
        }
        confirmation = parse_spec(yaml.safe_dump(content, sort_keys=False), str(content["study"]))
        # Created before training, so that a repeated command finds it as an unfinished confirmation.
        create_or_open_study(storage, confirmation, confirms=study.user_attrs.get("run_id"))
        new.append(confirmation)
    return [*unfinished, *new]
