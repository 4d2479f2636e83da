"""What MLflow's UI shows of a study: its description, the names and intervals of its trials, the saved view."""

import base64
import json
import re
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from servers import wait_for
from small import run_small_study, trial_runs
from studied import add_trial, make_study

from lit_mnist.sweeps.results.description import StudyPlace, best_first, describe_study, ties
from lit_mnist.sweeps.results.study_page import StudyPage, set_shared_tag
from lit_mnist.sweeps.study.study import stored_spec
from lit_mnist.sweeps.study.summary import read_summary
from lit_mnist.sweeps.study.trial_runs import PRUNED_MARK, run_name
from lit_mnist.tracking.mlflow_private import DESCRIPTION
from lit_mnist.tracking.queries.statistics import shares_differ, show_mean, wilson
from lit_mnist.tracking.store import connect, find_store

SPEC = """
config: zhang/cnn
metric: val/acc
direction: maximize
trials: 15
space:
  model.lr: {low: 0.01, high: 1, log: true}
  model.momentum: {low: 0, high: 0.99}
"""
MODE = "workflowType=machine_learning"
PLACE = StudyPlace("7", "c" * 32, "lit-mnist sweep a.yaml --trials=4 --workers 2", images=1000)


def study_of_seed_values(*values: tuple[float, ...]) -> optuna.Study:
    """A study with a complete trial for each tuple, which holds the values of its seeds."""
    study = make_study(objectives=(("val/acc", "maximize"),), seeds=(0, 1, 2), trials=len(values))
    for number, each in enumerate(values):
        mean = (sum(each) / len(each),)
        add_trial(study, TrialState.COMPLETE, 0.1 / (1 + number), mean=mean, values=[[v] for v in each],
                  runs=[f"{number}{seed}" for seed in range(3)], group=f"group{number}")  # fmt: skip
    return study


def test_the_page_of_a_real_study_says_which_point_is_best(project: Path) -> None:
    # With a learning rate of 1e-6 nothing is learnt, and the trial is pruned at its first validation.
    study = run_small_study(
        trials=4,
        space={"model.lr": {"low": 1e-6, "high": 0.1, "log": True}},
        points=[{"model.lr": rate} for rate in (0.01, 0.02, 1e-6, 1e-6)],
        pruner={"name": "median", "n_startup_trials": 2},
        flags={"trainer.max_epochs": 2, "data.train_per_class": 40},
    )
    spec = stored_spec(study)
    client, own_run = connect(find_store()), study.user_attrs["run_id"]
    with StudyPage(study, spec) as page:
        page.update(read_summary(study))
        wait_for(lambda: "sweep.result" in client.get_run(own_run).data.tags, "the update by the page's thread")
    page.finish(read_summary(study))
    experiment = client.get_experiment_by_name("sweeps/small")
    best, runs = study.best_trial, trial_runs(study)
    tags = client.get_run(own_run).data.tags
    description = tags[DESCRIPTION]
    assert experiment.tags[DESCRIPTION] == description
    answer = description.splitlines()[0]
    own = f"#/experiments/{experiment.experiment_id}/runs/{best.user_attrs['runs'][0]}?{MODE}"
    assert answer.startswith(f"Best: [trial {best.number}]({own}), val/acc **{best.value:.2f}")
    low, high = wilson(best.value, 100)
    assert f"binomial interval {low:.3f} to {high:.3f} from 100 validation images" in answer
    assert re.fullmatch(rf"val/acc 0\.\d+ ± 0\.\d+ \(trial {best.number}\)", tags["sweep.result"])
    pruned = [trial.number for trial in study.get_trials() if trial.state == TrialState.PRUNED]
    assert pruned and f"4 of 4 finished ({4 - len(pruned)} complete, {len(pruned)} pruned)" in description
    for run in runs:
        number = int(run.data.tags["sweep.trial"])
        assert (PRUNED_MARK in run.info.run_name) == (number in pruned)
        assert run.info.run_name.startswith(f"{number:02d} ") and "lr=" in run.info.run_name
        assert ("interval" in run.data.tags) == (number not in pruned)
        assert f"Trial {number} of the [study small](#/experiments/" in run.data.tags[DESCRIPTION]
    assert {run.info.status for run in runs} == {"FINISHED"}
    # Another sweep of the study does not send again what an earlier one has sent.
    client.set_tag(best.user_attrs["runs"][0], "interval", "sent before")
    again = StudyPage(study, spec)
    again.write(read_summary(study))
    assert client.get_run(best.user_attrs["runs"][0]).data.tags["interval"] == "sent before"
    view = json.loads(experiment.tags["mlflow.sharedViewState.trials"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert state["selectedColumns"] == [
        "metrics.`val/acc`",
        "tags.`interval`",
        "params.`lr`",
        "tags.`sweep.state`",
    ]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val/acc`", False)
    found = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.info.run_id for run in found} == {run.info.run_id for run in runs}


def test_several_tasks_can_set_new_tags_at_the_same_time(project: Path) -> None:
    client = connect(find_store())
    run_id = client.create_run("0").info.run_id
    together, errors = threading.Barrier(4), []

    def task() -> None:
        for number in range(40):
            together.wait()
            try:
                set_shared_tag(client.set_tag, run_id, f"tag {number}", "set")
            except Exception as error:  # reported below: raised here, it would leave the others waiting
                errors.append(error)

    tasks = [threading.Thread(target=task) for _ in range(4)]
    for each in tasks:
        each.start()
    for each in tasks:
        each.join()
    assert not errors and sum(tag == "set" for tag in client.get_run(run_id).data.tags.values()) == 40


def test_with_several_seeds_paired_differences_decide_which_trials_are_tied() -> None:
    # Trial 1 is worse by the same amount with every seed, trial 2 is worse only in the mean.
    study = study_of_seed_values((0.90, 0.92, 0.94), (0.89, 0.91, 0.93), (0.95, 0.90, 0.90))
    summary = read_summary(study)
    assert ties(summary, best_first(summary), images=1000) == [2]
    description = describe_study(summary, PLACE)
    assert "val/acc **0.920 ± 0.050** (mean of 3 seeds, 95 % interval)" in description
    assert "Possibly as good, 1 of the 2 others: [trial 2](#/experiments/7/runs/group2?" in description
    assert (
        f"| [trial 1](#/experiments/7/runs/group1?{MODE}) | 0.910 ± 0.050 | 0.05 | 0.5 |"
        in description.replace("&emsp;", "")
    )


def test_with_one_seed_the_validation_images_decide_which_trials_are_tied() -> None:
    study = study_of_seed_values((0.95,), (0.94,), (0.90,))
    summary = read_summary(study)
    assert ties(summary, best_first(summary), images=1000) == [1]
    assert ties(summary, best_first(summary), images=100_000) == []
    assert ties(summary, best_first(summary), images=None) is None
    assert "how sure that is is not known" in describe_study(
        summary, StudyPlace("7", "c", "lit-mnist sweep a.yaml")
    )


def test_the_description_says_how_to_go_on_and_escapes_values() -> None:
    study = study_of_seed_values((0.9, 0.8, 0.9))
    study.set_user_attr("trials", 5)
    description = describe_study(read_summary(study), PLACE)
    assert re.search(
        r"\n    lit-mnist sweep a.yaml --trials=4 --workers 2 +# the trials that are left\n", description
    )
    assert r"| \[2, 4\]&emsp; |" in description
    study.set_user_attr("trials", 1)
    more = describe_study(read_summary(study), PLACE)
    assert re.search(r"\n    lit-mnist sweep a.yaml --workers 2 --trials 2 +# more trials\n", more)
    # All points of a grid were tried.
    assert "# more trials" not in describe_study(read_summary(study), replace(PLACE, most_trials=1))
    nothing = make_study(trials=5)
    assert describe_study(read_summary(nothing), PLACE).startswith("No trial is complete yet.\n[All trials")


def test_no_trials_are_added_to_a_confirmation() -> None:
    place = replace(PLACE, command="lit-mnist sweep confirm lrs --top 1")
    study = make_study("lrs/confirm-1", trials=1)
    said = describe_study(read_summary(study), place)
    assert re.search(r"\n    lit-mnist sweep confirm lrs --top 1 +# the trials that are left\n", said)
    add_trial(study, TrialState.COMPLETE, mean=(0.9,))
    said = describe_study(read_summary(study), place)
    assert "How to go on:" in said and "--trials" not in said and "sweep confirm" not in said


def test_intervals_equal_published_ones() -> None:
    # Wilson 1927 as in Newcombe 1998, table I: 81 of 263.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(1.0, 50)[1] == pytest.approx(1.0) and wilson(0.0, 50)[0] == pytest.approx(0.0)
    assert shares_differ(0.8, 0.6, 75) and not shares_differ(0.8, 0.7, 75)
    assert show_mean(0.78333, 0.0521) == "0.783 ± 0.052" and show_mean(0.78333, None) == "0.7833"


def test_run_names_begin_with_the_most_important_values() -> None:
    point = {"model.optimizer": "rmsprop", "model.lr": 0.01123, "model.hidden_sizes": [500], "data.batch_size": 20}
    assert run_name(3, point, 30) == "03 lr=0.0112 rmsprop [500] bs=20"
    assert run_name(3, point, 1001, seed=2, mark=PRUNED_MARK).startswith("0003 ✂ s2 lr=0.0112")
    shares = {"model.hidden_sizes.width": 0.5, "model.lr_decay": 0.3, "model.optimizer": 0.15, "model.lr": 0.05}
    assert run_name(3, point, 30, shares=shares) == "03 [500] rmsprop lr=0.0112 bs=20"


def test_runs_are_renamed_when_importances_are_known(project: Path) -> None:
    client = connect(find_store())
    experiment = client.create_experiment("sweeps/lrs")
    study = make_study(objectives=(("val/acc", "maximize"),), trials=15)
    study.set_user_attr("spec", SPEC)
    study.set_user_attr("experiment_id", experiment)
    study.set_user_attr("run_id", client.create_run(experiment).info.run_id)
    for number in range(15):  # only the momentum has an effect
        lr, momentum = 0.01 * (1 + number * 7 % 15), number / 15
        names = {"model.lr": lr, "model.momentum": momentum}
        run = client.create_run(experiment, run_name=run_name(number, names, 15)).info.run_id
        add_trial(study, TrialState.COMPLETE, lr, momentum, mean=(1 - momentum,), runs=[run], point=names)
    StudyPage(study, stored_spec(study)).finish(read_summary(study))
    name = client.get_run(study.get_trials()[3].user_attrs["runs"][0]).info.run_name
    assert name == "03 mom=0.2 lr=0.07"


def test_a_store_that_refuses_the_page_is_noted_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(objectives=(("val/acc", "maximize"),), trials=15)
    number = connect(find_store()).create_experiment("sweeps/lrs")
    for name, value in {"spec": SPEC, "experiment_id": number, "run_id": "0" * 32}.items():  # there is no such run
        study.set_user_attr(name, value)
    add_trial(study, TrialState.COMPLETE, mean=(0.9,))
    with StudyPage(study, stored_spec(study)) as page:
        page.update(read_summary(study))
    page.finish(read_summary(study))
    assert capsys.readouterr().err.count("the study's page is not up to date: ") == 1
