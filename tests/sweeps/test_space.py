"""Points of a search space, samplers, which suggest the same point for the same trial, and pruners."""

from collections import Counter
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial, create_trial
from test_spec import SPACE, spec_yaml

from lit_mnist.sweeps.search.optuna_private import BracketHyperbandPruner
from lit_mnist.sweeps.search.samplers import make_pruner, make_sampler
from lit_mnist.sweeps.search.space import Space
from lit_mnist.sweeps.search.spec import Spec, parse_spec
from lit_mnist.sweeps.search.validation import check


def _space(parameters: dict[str, Any]) -> Space:
    sampler = "grid" if any("points" in parameter for parameter in parameters.values()) else "random"
    return parse_spec(spec_yaml(space=parameters, sampler=sampler), "x").space


SIZES = {"depth": {"low": 1, "high": 3}, "width": {"low": 4, "high": 128, "log": True}}


def _sizes(rule: str, **parameters: int) -> Any:
    """The point that these suggestions of depth and width give by the rule."""
    space = _space({"model.hidden_sizes": {**SIZES, "rule": rule}})
    return space.suggest(FixedTrial({f"model.hidden_sizes.{name}": v for name, v in parameters.items()}))


def test_layer_sizes_follow_their_rule() -> None:
    assert _sizes("equal", depth=2, width=100) == {"model.hidden_sizes": [100, 100]}
    assert _sizes("halving", depth=3, width=101) == {"model.hidden_sizes": [101, 50, 25]}
    assert _sizes("free", depth=2, width_1=4, width_2=128) == {"model.hidden_sizes": [4, 128]}


def test_a_parameter_that_does_not_apply_has_no_value() -> None:
    space = _space(SPACE)
    sgd = {"model.lr": 0.01, "model.optimizer": "sgd", "model.momentum": 0.5}
    adam = {"model.lr": 0.01, "model.optimizer": "adam"}
    assert space.suggest(FixedTrial(sgd)) == sgd and space.suggest(FixedTrial(adam)) == adam


def test_choices_may_be_lists_and_set_further_fields() -> None:
    space = _space({
        "model.hidden_sizes": {"choices": [[500, 200], [100]]},
        "model.frozen_epochs": {"choices": [2, 4], "also": {"trainer.max_epochs": 2}},
    })  # fmt: skip
    point = {"model.hidden_sizes": [500, 200], "model.frozen_epochs": 4, "trainer.max_epochs": 8}
    given = {name: value for name, value in point.items() if name != "trainer.max_epochs"}
    assert space.suggest(FixedTrial(space.encode(given))) == point
    assert "trainer.max_epochs" in space.names


@pytest.mark.parametrize("rule", ["equal", "halving", "free"])
def test_the_encoding_of_a_point_gives_the_point_again(rule: str) -> None:
    space = _space({"model.hidden_sizes": {**SIZES, "rule": rule}})
    point = {"model.hidden_sizes": {"equal": [32, 32], "halving": [32, 16], "free": [32, 9]}[rule]}
    assert space.suggest(FixedTrial(space.encode(point))) == point


def test_probe_points_cover_branches_and_ends_without_all_combinations() -> None:
    nested = {
        "model.hidden_sizes": {**SIZES, "rule": "free"},
        "data.corruption": {"choices": [None, "gaussian"]},
        "data.noise": {"low": 0.1, "high": 1, "when": {"data.corruption": "gaussian"}},
        "data.batch_size": {"choices": [16, 24, 32], "when": {"data.corruption": "gaussian"}},
    }
    points = _space(nested).probe_points()
    sizes = [point["model.hidden_sizes"] for point in points]
    assert {len(size) for size in sizes} == {1, 2, 3} and {4, 128} == {s for size in sizes for s in size}
    assert {point.get("data.batch_size") for point in points} == {None, 16, 24, 32}
    assert {point.get("data.noise") for point in points} == {None, 0.1, 1.0}
    assert len(points) <= 7


def test_a_grid_has_each_combination_once() -> None:
    space = _space({**SPACE, "model.lr": {"low": 0.001, "high": 0.1, "log": True, "points": 3},
                   "model.momentum": {**SPACE["model.momentum"], "step": 0.3}})  # fmt: skip
    grid = space.grid()
    assert {point["model.lr"] for point in grid} == {0.001, 0.01, 0.1}
    assert Counter(point["model.optimizer"] for point in grid) == {"sgd": 12, "adam": 3}
    assert {point.get("model.momentum") for point in grid} == {None, 0.0, 0.3, 0.6, 0.9}


def _spec(sampler: str, **changes: Any) -> Spec:
    space: dict[str, Any] = dict(SPACE)
    if sampler == "cmaes":
        space = {"model.lr": SPACE["model.lr"], "data.noise": {"low": 0, "high": 1}}
    if sampler == "grid":
        space["model.lr"] = {**space["model.lr"], "points": 3}
        space["model.momentum"] = {**space["model.momentum"], "points": [0, 0.9]}
    return parse_spec(spec_yaml(sampler={"name": sampler, **changes}, space=space, trials=8), "x")


def _points(spec: Spec, study: optuna.Study, count: int) -> list[dict[str, Any]]:
    """The points of all trials, after `count` more, each with a value computed from its point."""
    for _ in range(count):
        study.sampler = make_sampler(spec, len(study.trials))
        trial = study.ask()
        point = spec.space.suggest(trial)
        trial.set_user_attr("point", point)
        study.tell(trial, float(point["model.lr"]) + float(point.get("model.momentum", 0.5)))  # type: ignore[arg-type]
    return [trial.user_attrs["point"] for trial in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "cmaes", "gp", "qmc"])
def test_a_resumed_study_has_the_points_of_an_uninterrupted_one(sampler: str) -> None:
    few_startup_trials = {"n_startup_trials": 3} if sampler in ("tpe", "gp") else {}
    whole = _points(_spec(sampler, **few_startup_trials), optuna.create_study(), 6)
    resumed = optuna.create_study()
    _points(_spec(sampler, **few_startup_trials), resumed, 3)
    assert _points(_spec(sampler, **few_startup_trials), resumed, 3) == whole
    if sampler == "grid":
        assert len({str(point) for point in whole}) == 6
    assert _points(_spec(sampler, seed=9, **few_startup_trials), optuna.create_study(), 6) != whole


@pytest.mark.parametrize("sampler", ["grid", "qmc"])
def test_concurrent_workers_get_different_points(sampler: str) -> None:
    spec, study = _spec(sampler), optuna.create_study()
    points = []
    for number in range(8):  # all are started before any is finished
        study.sampler = make_sampler(spec, number)
        points.append(str(spec.space.suggest(study.ask())))
    assert len(set(points)) == 8


def test_a_grid_does_not_repeat_the_given_points() -> None:
    first = {"model.lr": 0.01, "model.optimizer": "adam"}
    space = {"model.lr": {"low": 0.001, "high": 0.1, "points": [0.001, 0.01, 0.1]},
             "model.optimizer": SPACE["model.optimizer"]}  # fmt: skip
    spec = parse_spec(spec_yaml(sampler="grid", space=space, trials=None, points=[first]), "x")
    study = optuna.create_study()
    study.enqueue_trial(spec.space.encode(spec.points[0]))
    points = []
    for number in range(spec.trials):
        study.sampler = make_sampler(spec, number)
        points.append(spec.space.suggest(study.ask()))
    assert points[0] == first and len({str(point) for point in points}) == len(points) == 6


def test_a_qmc_sequence_covers_both_halves_of_every_interval_equally() -> None:
    points = _points(_spec("qmc"), optuna.create_study(), 8)
    lower = sum(point["model.lr"] < 10**-2.5 for point in points)
    assert lower == 4 and Counter(point["model.optimizer"] for point in points) == {"sgd": 4, "adam": 4}


@pytest.mark.parametrize("pruner", ["median", "hyperband", {"name": "patient", "patience": 1}])
def test_a_pruner_prunes_a_trial_that_is_worse_than_the_others(pruner: Any) -> None:
    spec = parse_spec(spec_yaml(pruner=pruner), "x")
    # Hyperband assigns trials to brackets by the name of the study, and one of its brackets prunes nothing.
    study = optuna.create_study(study_name="x", direction="maximize", pruner=make_pruner(spec, 9))
    pruned = []
    for quality in (*([1.0] * 12), *([0.0] * 4)):
        trial = study.ask()
        pruned.append(False)
        for epoch in range(1, 10):
            trial.report(quality * epoch if quality else -epoch, epoch)
            pruned[-1] = pruned[-1] or trial.should_prune()
        study.tell(trial, quality)
    assert any(pruned[12:]) and not any(pruned[:12])


def test_a_step_of_hyperband_is_a_validation() -> None:
    flags = {"data": "MiniMNISTDataModule", "trainer.max_epochs": 9, "trainer.check_val_every_n_epoch": 3}
    spec = parse_spec(spec_yaml(pruner="hyperband", flags=flags, space={"model.lr": SPACE["model.lr"]}), "x")
    (validations,) = {probe.validations for probe in check(spec)}
    assert validations == 3
    pruner = make_pruner(spec, validations)
    assert isinstance(pruner, BracketHyperbandPruner)
    assert pruner._n_brackets == 2  # of 1 and of 3 validations; by epochs there would be a third, of 9


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_learns_from_the_trials_of_its_hyperband_bracket(sampler: str) -> None:
    options = {"name": sampler, "n_startup_trials": 4}
    spec = parse_spec(spec_yaml(sampler=options, pruner="hyperband", space={"model.lr": SPACE["model.lr"]}), "x")

    def study_of(values: list[float]) -> optuna.Study:
        study = optuna.create_study(study_name="x", direction="maximize")
        distributions = {d.name: d.distribution for d in spec.space.dimensions()}
        for number, value in enumerate(values):
            params = {"model.lr": 10 ** (-1 - number % 30 / 10)}
            study.add_trial(create_trial(params=params, distributions=distributions, value=value))
        return study

    def suggestion(values: list[float]) -> float:
        study = study_of(values)
        # New ones for each trial, as in a sweep.
        study.sampler, study.pruner = make_sampler(spec, len(values)), make_pruner(spec, 9)
        return study.ask().suggest_float("model.lr", 1e-4, 0.1, log=True)

    values = [float(number * 7 % 11) for number in range(40)]
    study, pruner = study_of([*values, 0.0]), make_pruner(spec, 9)
    assert isinstance(pruner, BracketHyperbandPruner)
    brackets = [pruner._get_bracket_id(study, trial) for trial in study.trials]
    in_bracket = [bracket == brackets[-1] for bracket in brackets[:-1]]
    assert 4 < sum(in_bracket) < 36
    others_reversed = [v if own else 100 - v for v, own in zip(values, in_bracket, strict=True)]
    own_reversed = [100 - v if own else v for v, own in zip(values, in_bracket, strict=True)]
    assert suggestion(others_reversed) == suggestion(values) != suggestion(own_reversed)
