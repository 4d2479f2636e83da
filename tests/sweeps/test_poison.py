"""An error in one point or in the spec is reported early, and does not end the study of the other points."""

import errno
import os
import sys
from pathlib import Path

import pytest
from conftest import Cli
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.trial import TrialState
from small import run_small_study, spec_text, trial_runs, write_spec
from studied import add_trial, make_study

from lit_mnist.errors import UsageError
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.search.validation import check
from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.sweeps.study.summary import seconds_left
from lit_mnist.sweeps.workers.errors import ReleasedError


class Poison(Callback):
    """Fails like an allocation under `ulimit -v`, in trials with a high learning rate."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.hparams["lr"] > 0.05:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_trial_that_repeats_an_oserror_fails_and_the_others_are_trained(project: Path) -> None:
    lrs = {"choices": [0.06, 0.01, 0.02]}
    search = {"space": {"model.lr": lrs}, "sampler": "grid", "flags": {"trainer.callbacks": "test_poison.Poison"}}
    released = 0
    while True:
        try:
            # A worker that releases a trial ends, and a sweep would start another worker.
            study = run_small_study(**search)
            break
        except ReleasedError:
            released += 1
    assert released == 3
    failed, *done = sorted(study.get_trials(), key=lambda trial: -trial.params["model.lr"])
    assert [trial.state for trial in (failed, *done)] == [
        TrialState.FAIL,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
    ]
    assert failed.user_attrs["reason"] == "OSError: [Errno 12] Cannot allocate memory (3 times in a row)"
    statuses = {run.data.tags["sweep.trial"]: run.info.status for run in trial_runs(study)}
    assert statuses.pop(str(failed.number)) == "FAILED" and set(statuses.values()) == {"FINISHED"}


def test_a_distributed_trial_is_released_three_times_before_it_fails(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"space": {"model.lr": {"choices": [0.06, 0.01]}}, "sampler": "grid", "trials": 2,
              "flags": {"trainer.callbacks": "test_poison.Poison", "trainer.devices": 2,
                        "trainer.accelerator": "cpu", "trainer.strategy": "ddp"}}  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    for _ in range(3):
        with pytest.raises(ReleasedError, match="Cannot allocate memory"):
            run_small_study(**search)
    failed, complete = sorted(run_small_study(**search).get_trials(), key=lambda trial: -trial.params["model.lr"])
    assert (failed.state, complete.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert failed.user_attrs["reason"] == "OSError: [Errno 12] Cannot allocate memory (3 times in a row)"


def test_flags_with_which_no_trial_can_start_are_refused_before_a_study_exists(cli: Cli) -> None:
    code, _, err = cli("sweep", write_spec(flags={"trainer.accelerator": "tpu"}))
    assert code == 2 and "error: --trainer: " in err and len(err.splitlines()) == 1
    assert cli("sweep", "list")[1].startswith("no studies yet")


def test_a_point_too_large_for_this_machine_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"choices": [[2, 4], [200, 10**9]]}  # the second has 20 TB of weights
    probes = check(parse_spec(spec_text(space={"model.channels": sizes}), "small"))
    assert [probe.point["model.channels"] for probe in probes] == [[2, 4]]
    (line,) = capsys.readouterr().err.splitlines()
    assert "not enough memory here" in line and "[200, 1000000000]" in line


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({"trainer.max_steps": 5, "trainer.max_epochs": -1}, "5 steps"),
        ({"trainer.check_val_every_n_epoch": 2, "trainer.max_epochs": 1}, r"\d+ steps"),
    ],
)
def test_a_training_that_ends_before_its_first_validation_is_refused(flags: dict[str, int], steps: str) -> None:
    text = spec_text(flags={"data.train_per_class": 40, "data.batch_size": 10, **flags})
    with pytest.raises(UsageError, match=f"ends after {steps}, before its first validation.* no val/acc"):
        check(parse_spec(text, "small"))


@pytest.mark.parametrize("content", [bytes(range(256)), b"\x89PNG without a line end", b"trials: 3\n"])
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a journal of studies"):
        open_storage(str(path))
    assert path.read_bytes() == content


def test_the_error_for_an_empty_spec_names_the_fields_that_it_needs() -> None:
    with pytest.raises(UsageError, match="it is empty: a spec needs config"):
        parse_spec("# nothing but a comment\n", "empty")


def test_the_time_left_counts_whole_trials_and_the_progress_of_running_ones() -> None:
    study = make_study(trials=6)
    for _ in range(2):
        add_trial(study, TrialState.COMPLETE, mean=(0.9,), seconds=60.0, reported={0: 0.5, 1: 0.9})
    add_trial(study, TrialState.RUNNING, reported={0: 0.5})  # half done: 30 s
    trials = study.get_trials()
    # Of two workers, one is free after 30 s and the other at once; each of the three trials left takes a minute.
    assert seconds_left(trials, 6, 2) == pytest.approx(120)
    assert seconds_left(trials, 6, 2, until_stop=40) == pytest.approx(90)
    assert seconds_left(make_study(name="new").get_trials(), 6, 2) is None
