"""Optuna's internals are as `optuna_private.py` needs them; a failure names what an upgrade has changed."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import GPSampler, QMCSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

import lit_mnist
from lit_mnist.sweeps.search import optuna_private
from lit_mnist.sweeps.search.optuna_private import limit_trials

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def _study() -> optuna.Study:
    return optuna.create_study(study_name="contract")


def _storage_of_a_study() -> None:
    study = _study()
    assert optuna_private.storage_of(study) is study.ask().storage


def _ids_of_trials() -> None:
    study = _study()
    trial = study.ask()
    assert optuna_private.trial_id(trial) == optuna_private.trial_id(study.trials[0])
    assert trial.storage.get_trial(optuna_private.trial_id(trial)).number == trial.number


def _reported_steps() -> None:
    trial = _study().ask()
    trial.report(1.0, 3)
    assert optuna_private.has_reported(trial, 3) and not optuna_private.has_reported(trial, 2)


def _the_cache_of_trials() -> None:
    study = _study()
    assert study._get_trials(use_cache=True) == []
    study.storage = optuna_private.storage_of(study)
    study.storage.create_new_trial(study.storage.get_study_id_from_name("contract"))
    assert study._get_trials(use_cache=True) == [], "trials are not cached any more: forget_cached_trials can go"
    optuna_private.forget_cached_trials(study)
    assert len(study._get_trials(use_cache=True)) == 1


def _constraints() -> None:
    study = _study()
    trial = study.ask()
    for name, excess in (("parameters", -1.0), ("seconds", 2.0), ("parameters", 5.0)):
        optuna_private.set_constraint(trial, name, excess)
    assert dict(optuna_private.constraints_of(trial)) == {"parameters": -1.0, "seconds": 2.0}
    study.tell(trial, 0.0)
    assert dict(optuna_private.constraints_of(study.trials[0])) == {"parameters": -1.0, "seconds": 2.0}
    # Samplers must see them as well: the second trial is better and feasible.
    study.sampler = TPESampler(seed=0, **optuna_private.sampler_options(TPESampler, True))
    for value in (1.0, 2.0):
        trial = study.ask()
        optuna_private.set_constraint(trial, "parameters", -1.0)
        study.tell(trial, value)
    assert study.best_value == 1.0


def _the_index_in_a_qmc_sequence() -> None:
    space = {"a": FloatDistribution(0, 1), "b": CategoricalDistribution(("x", "y"))}
    found = []
    for number in (0, 1, 1):
        study = _study()
        study.sampler = optuna_private.NumberedQMCSampler(number, space, qmc_type="sobol", scramble=True, seed=0)
        trial = study.ask()
        found.append((trial.suggest_float("a", 0, 1), trial.suggest_categorical("b", ("x", "y"))))
    assert found[0] != found[1] == found[2]
    assert not optuna_private.storage_of(study).get_study_system_attrs(0), "a sequence counts in the study"


def _the_brackets_of_hyperband() -> None:
    pruner, study = optuna_private.BracketHyperbandPruner(9, 1, 3), _study()
    assert len(pruner._pruners) == 3, "the constructor makes no brackets"
    for _ in range(20):
        study.tell(study.ask(), 0.0)
    study.pruner = pruner
    brackets = [pruner._get_bracket_id(study, trial) for trial in study.trials]
    assert set(brackets) == {0, 1, 2}
    for bracket in set(brackets):
        shown = pruner._create_bracket_study(study, bracket)._get_trials(deepcopy=False, use_cache=True)
        assert [t.number for t in shown] == [number for number, b in enumerate(brackets) if b == bracket]


CONTRACT: dict[str, Callable[[], None]] = {
    "Study._storage": _storage_of_a_study,
    "Trial._trial_id and FrozenTrial._trial_id": _ids_of_trials,
    "Trial._cached_frozen_trial": _reported_steps,
    "Study._thread_local.cached_all_trials": _the_cache_of_trials,
    "Trial.set_constraint or the system attribute `constraints`": _constraints,
    "QMCSampler._find_sample_id": _the_index_in_a_qmc_sequence,
    "HyperbandPruner._try_initialization, ._get_bracket_id, ._create_bracket_study": _the_brackets_of_hyperband,
}


@pytest.mark.parametrize("name", CONTRACT)
def test_a_private_name_of_optuna_works_as_needed(name: str) -> None:
    try:
        CONTRACT[name]()
    except (AttributeError, TypeError, KeyError, AssertionError) as error:
        tried = ", ".join(optuna_private.TRIED)
        pytest.fail(
            f"{name} is not in Optuna {optuna.__version__} what it was in the versions that"
            f" lit_mnist/sweeps/search/optuna_private.py was tried with ({tried}): {error}"
        )


def test_arguments_of_samplers_are_known_to_optuna() -> None:
    # An unknown argument is a TypeError.
    for sampler in (TPESampler, GPSampler, QMCSampler):
        options = optuna_private.sampler_options(sampler, has_constraints=True)
        assert isinstance(sampler(seed=0, **options), sampler)


def test_private_names_of_optuna_are_used_in_one_module() -> None:
    """Names with an underscore that belong to Optuna's classes, or are imported from its private modules."""
    private = {
        name
        for owner in (optuna.Study, Trial, HyperbandPruner, QMCSampler, _study(), _study().ask())
        for name in dir(owner)
        if name.startswith("_") and not name.startswith("__")
    }
    used = {"_storage", "_cached_frozen_trial", "_trial_id", "_study_id", "_thread_local", "_get_trials"}
    assert used <= private
    wrong = []
    for path in Path(lit_mnist.__file__).parent.rglob("*.py"):
        if path.name == "optuna_private.py":
            continue
        tree = ast.parse(path.read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in ast.walk(tree):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("optuna") and any(
                part.startswith("_")
                for part in (*module.split("."), *(alias.name for alias in node.names))  # type: ignore[union-attr]
            ):
                wrong.append(f"{path.name}:{node.lineno}: {module}")
            is_self = isinstance(node, ast.Attribute) and _owner_name(node) in ("self", "cls")
            if isinstance(node, ast.Attribute) and node.attr in used - defined and not is_self:
                wrong.append(f"{path.name}:{node.lineno}: {node.attr}")
    assert not wrong


def _owner_name(node: ast.Attribute) -> Any:
    """The name before the dot of an attribute; None if something else is before the dot."""
    return node.value.id if isinstance(node.value, ast.Name) else None


def test_samplers_of_a_large_study_see_the_best_the_running_and_the_newest_trials() -> None:
    study = optuna.create_study(direction="maximize")
    space = {"x": FloatDistribution(0, 1)}
    for number in range(200):
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[number % 3]
        # The best are numbers 60, 63, ...: neither first nor last.
        value = {"value": 1 - abs(number - 60) / 200} if state == TrialState.COMPLETE else {}
        reported = {"intermediate_values": {0: 0.5}} if state == TrialState.PRUNED else {}
        study.add_trial(create_trial(state=state, params={"x": 0.5}, distributions=space, **value, **reported))
    running = study.ask()

    class Spy(TPESampler):
        seen: list[FrozenTrial]

        def sample_relative(self, study, trial, search_space):  # type: ignore[no-untyped-def]
            states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
            self.seen = study._get_trials(deepcopy=False, states=states, use_cache=False)
            return super().sample_relative(study, trial, search_space)

    study.sampler = sampler = Spy(multivariate=True, group=True, constant_liar=True, seed=0)
    with limit_trials(study, study.get_trials(), 40, has_constraints=False, best=10):
        study.ask(space)
    numbers = [trial.number for trial in sampler.seen]
    assert numbers == sorted(numbers) and len(numbers) == 40
    assert {45, 48, 51, 54, 57, 60, 63, 66, 69, 72, running.number} <= set(numbers)
    assert {196, 198, 199} <= set(numbers) and 197 not in numbers  # 197 failed
    assert len(study.get_trials()) == 202
