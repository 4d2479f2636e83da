"""The sampler `auto` and the pruner `wilcoxon`: what they choose, and what is refused."""

from typing import Any

import optuna
import pytest
from optuna.samplers import CmaEsSampler, GPSampler, TPESampler
from small import spec_text

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.samplers import auto_sampler, make_sampler
from lit_mnist.sweeps.search.spec import parse_spec

LR = {"low": 1e-3, "high": 0.1, "log": True}
NUMBERS = {"model.lr": LR, "model.dropout": {"low": 0.0, "high": 0.5}}
TWO = {"metric": None, "direction": None, "objectives": [
    {"metric": "val/loss", "direction": "minimize"}, {"metric": "seconds", "direction": "minimize"},
]}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "number", "chosen"),
    [
        ({"space": NUMBERS}, 0, "gp"),
        ({"space": NUMBERS}, 250, "cmaes"),
        ({"space": {"model.lr": LR}}, 250, "tpe"),
        ({"space": NUMBERS, **TWO}, 250, "tpe"),
        ({"space": {**NUMBERS, "model.optimizer": {"choices": ["sgd", "adam"]}}}, 0, "tpe"),
        ({"space": {"model.hidden_sizes": {"depth": {"low": 1, "high": 3}, "width": {"low": 4, "high": 9},
                                           "rule": "free"}}, "config": "dutta/backprop_net"}, 0, "tpe"),
        ({"space": NUMBERS, "constraints": [{"metric": "seconds", "at_most": 9}]}, 0, "tpe"),
    ],
)  # fmt: skip
def test_auto_chooses_by_the_rule_of_autosampler(changes: dict[str, Any], number: int, chosen: str) -> None:
    spec = parse_spec(spec_text(sampler="auto", trials=300, **changes), "small")
    assert auto_sampler(spec, number) == chosen
    kind = {"gp": GPSampler, "cmaes": CmaEsSampler, "tpe": TPESampler}[chosen]
    assert isinstance(make_sampler(spec, number), kind)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_cmaes_goes_on_from_what_the_gaussian_process_has_found() -> None:
    """The 250 trials are near one point of the space; CMA-ES by itself would begin in the middle of the space."""
    spec = parse_spec(spec_text(sampler="auto", trials=300, space=NUMBERS), "small")
    study = optuna.create_study(direction="maximize")
    space = {d.name: d.distribution for d in spec.space.dimensions()}
    for number in range(250):
        near = {"model.lr": 0.0015 + 1e-6 * number, "model.dropout": 0.45 + 1e-4 * (number % 50)}
        study.add_trial(optuna.trial.create_trial(value=number / 1000, params=near, distributions=space))

    def ask() -> dict[str, Any]:
        study.sampler = make_sampler(spec, 250, study.get_trials())
        trial = study.ask(space)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return trial.params

    point = ask()
    assert point["model.lr"] < 0.004 and point["model.dropout"] > 0.4


@pytest.mark.parametrize("repeats", [1, 4])
def test_wilcoxon_is_refused_with_too_few_seeds_to_prune(repeats: int) -> None:
    with pytest.raises(UsageError, match="repeats must be at least 5"):
        parse_spec(spec_text(pruner="wilcoxon", repeats=repeats), "small")
    assert parse_spec(spec_text(pruner="wilcoxon", repeats=5), "small").pruner == "wilcoxon"
