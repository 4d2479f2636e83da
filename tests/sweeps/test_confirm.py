"""`lit-mnist sweep confirm`: training the best points with further seeds, and which of them are tied."""

import json
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from conftest import Cli
from scipy.stats import ttest_1samp
from small import run_small_study, trial_runs
from studied import make_study

from lit_mnist.sweeps.confirm import confirm
from lit_mnist.sweeps.results.confirmation import ConfirmedPoint, compare, read_confirmation, verdict
from lit_mnist.sweeps.study.storage import confirmation_names, open_storage, open_study, study_names
from lit_mnist.sweeps.study.summary import read_summary
from lit_mnist.tracking.descriptions import escape
from lit_mnist.tracking.mlflow_private import DESCRIPTION, VIEW_TAG
from lit_mnist.tracking.queries.statistics import holm, p_value
from lit_mnist.tracking.store import connect, find_store


class Killed(BaseException):
    """Raised instead of killing the process."""


def test_the_paired_test_equals_scipys_and_holm_its_definition() -> None:
    differences = [0.01, 0.03, 0.02, -0.01, 0.015]
    assert p_value(differences) == pytest.approx(ttest_1samp(differences, 0).pvalue)
    assert p_value([0.0, 0.0]) == 1 and p_value([0.1] * 3) == 0
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_the_variance_over_seeds_does_not_hide_a_small_paired_difference() -> None:
    """The intervals overlap, but one point is better by 0.01 with each seed."""
    by_seed = {seed: 0.8 + 0.02 * seed for seed in range(5)}
    worse = {seed: value - 0.01 - 0.0005 * seed for seed, value in by_seed.items()}
    noisy = {seed: value + 0.012 * (-1) ** seed - 0.005 for seed, value in by_seed.items()}
    (first, *_), (tied, _, _, p_tied), (second, _, difference, p) = compare({7: worse, 8: by_seed, 9: noisy}, True)
    assert (first, tied, second) == (8, 9, 7)
    assert difference is not None and difference.mean == pytest.approx(0.011)
    assert p is not None and p < 0.001 and p_tied is not None and p_tied > 0.3
    assert [candidate for candidate, *_ in compare({7: worse, 8: by_seed}, False)] == [7, 8]


def test_leaders_are_trained_with_new_seeds_and_no_seed_twice(cli: Cli, project: Path) -> None:
    study = run_small_study(trials=3, flags={"trainer.limit_train_batches": 2})
    assert cli("sweep", "confirm", "small", "--top", "2", "--seeds", "2")[0] == 0
    storage = open_storage(None)
    (name,) = confirmation_names(storage, "small")
    confirmation = open_study(storage, name)
    assert [len(trial.user_attrs["values"]) for trial in confirmation.get_trials()] == [2, 2]
    found = read_confirmation(storage, "small")
    best = study.best_trial
    assert {1, 2} == set(found[0].by_seed) and best.number in [point.number for point in found]
    client = connect(find_store())
    parent = client.get_run(confirmation.user_attrs["run_id"])
    assert parent.data.tags["mlflow.parentRunId"] == study.user_attrs["run_id"]
    assert len({run.info.experiment_id for run in (*trial_runs(study), *trial_runs(confirmation))}) == 1

    code, out, err = cli("sweep", "confirm", "small", "--top", "2", "--seeds", "3")
    assert code == 0, err
    names = confirmation_names(storage, "small")
    assert len(names) == 2 and len(trial_runs(open_study(storage, names[1]))) == 2  # seed 3 of each leader
    assert "confirmed with 3 seeds that the search had not used (val/acc, trials of the study small):" in out
    assert "best: " not in out  # of the confirmation, whose trials have other numbers
    assert out.splitlines()[-2].startswith(f"trial {read_confirmation(storage, 'small')[0].number} ")
    assert out.splitlines()[-1] == "next: lit-mnist sweep best small"

    # The study's page has the result; the pages of its confirmations leave the experiment's own as it is.
    tags = client.get_experiment(parent.info.experiment_id).tags
    result = escape("Confirmed with 3 seeds that the search had not used (val/acc, trials of the study small):")
    for text in (tags[DESCRIPTION], client.get_run(study.user_attrs["run_id"]).data.tags[DESCRIPTION]):
        assert f"\n{result}\n- trial " in text and "lit-mnist sweep small --trials 6" in text
    shown = {key: json.loads(tags[VIEW_TAG + key])["state"] for key in ("trials", "confirm-1", "confirm-2")}
    assert len(set(shown.values())) == 3

    code, out, _ = cli("sweep", "best", "small")
    assert code == 0 and "confirmed with 3 seeds" in out
    winner = read_confirmation(storage, "small")[0].number
    assert Path("small_best.yaml").read_text().startswith(f"# Study small, trial {winner}, seed 0, run ")
    assert "confirm" not in cli("sweep", "list")[1]
    assert len(study.get_trials()) == 3

    assert cli("sweep", "small", "--trials", "4")[0] == 0
    tags = client.get_experiment(parent.info.experiment_id).tags
    assert len(study.get_trials()) == 4 and f"\n{result}\n- trial " in tags[DESCRIPTION]


def test_the_verdict_names_ties_and_says_when_the_best_is_sure() -> None:
    summary = read_summary(make_study(objectives=(("val/acc", "maximize"),)))
    by_seed = {seed: 0.8 + 0.02 * seed for seed in range(5)}
    worse = {seed: value - 0.01 - 0.0005 * seed for seed, value in by_seed.items()}
    noisy = {seed: value + 0.012 * (-1) ** seed - 0.005 for seed, value in by_seed.items()}

    def lines(values: dict[int, dict[int, float]]) -> list[str]:
        found = [ConfirmedPoint(n, {"model.lr": 0.1}, values[n], *rest) for n, *rest in compare(values, True)]
        return verdict(summary, found)

    sure = lines({7: worse, 8: by_seed})
    assert sure[-1] == "trial 8 is surely the best of these (95 %, paired by seed, Holm)"
    assert "worse by 1.100 ± 0.098 points (p " in sure[-2]
    tied = "trial 8 has the best mean; trial 9 cannot be told apart from it"
    assert lines({7: worse, 8: by_seed, 9: noisy})[-1] == tied
    few = lines({1: {5: 0.90, 6: 0.91, 7: 0.92}, 2: {5: 0.99}})
    assert few[-1] == "trial 1 has the best mean; trial 2 cannot be told apart from it"


def test_a_half_created_confirmation_is_completed_by_the_next_command(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run_small_study(trials=1, flags={"trainer.limit_train_batches": 2})
    write = optuna.Study.set_user_attr
    for writes in range(5):
        left = iter(range(writes))

        def write_until_killed(study: optuna.Study, name: str, value: object, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed
            write(study, name, value)

        monkeypatch.setattr(optuna.Study, "set_user_attr", write_until_killed)
        with pytest.raises(Killed):
            confirm("small", top=1, seeds=2, workers=1, url=None)
        monkeypatch.setattr(optuna.Study, "set_user_attr", write)
        for command in (["best", "small"], ["status", "small"], ["list"]):
            code, out, err = cli("sweep", *command)
            assert code == 0 and "confirm" not in out, err
    assert cli("sweep", "confirm", "small", "--seeds", "2")[0] == 0
    storage = open_storage(None)
    assert [name for name in study_names(storage) if name != "small"] == ["small/confirm-1"]
    parent = connect(find_store()).get_run(open_study(storage, "small/confirm-1").user_attrs["run_id"])
    assert parent.data.tags["mlflow.parentRunId"] == study.user_attrs["run_id"]


def test_several_objectives_are_refused(cli: Cli, project: Path) -> None:
    objectives = [{"metric": m, "direction": "minimize"} for m in ("val/loss", "parameters")]
    run_small_study(trials=1, objectives=objectives, metric=None, direction=None)
    code, _, err = cli("sweep", "confirm", "small")
    assert code == 2 and "has 2 objectives" in err


def test_a_stored_study_can_be_continued_by_its_name(cli: Cli, project: Path) -> None:
    study = run_small_study(trials=1)
    assert not Path("small.yaml").exists()
    code, _, err = cli("sweep", "small", "--trials", "2")
    assert (code, len(study.get_trials())) == (0, 2), err
    code, _, err = cli("sweep", "smal")
    assert code == 2 and "smal" in err and "Traceback" not in err


def test_a_candidate_with_fewer_seeds_is_not_the_best() -> None:
    values = {1: {5: 0.90, 6: 0.91, 7: 0.92}, 2: {5: 0.99}}
    assert [candidate for candidate, *_ in compare(values, upwards=True)] == [1, 2]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--top", "0"), "--top 0 must be at least 1"),
        (("--seeds", "1"), "--seeds 1 must be at least 2"),
        (("--seeds", "2147483648"), "--seeds 2147483648 must be at most 1,000"),
        (("--workers", "100000"), "--workers 100000 must be at most 1,000"),
    ],
)
def test_counts_out_of_range_are_refused(cli: Cli, project: Path, flags: tuple[str, str], reason: str) -> None:
    code, _, err = cli("sweep", "confirm", "small", *flags)
    assert code != 0 and err.splitlines() == [f"lit-mnist: error: {reason}"]
