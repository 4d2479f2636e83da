"""A stage is trained only once, and resumes after its training was killed."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from lightning.pytorch import Callback
from tiny import CLASSIFIER, ENCODER

from lit_mnist.added_options import ADDED_OPTIONS
from lit_mnist.errors import Interrupted
from lit_mnist.papers.report.experiment import PAPERS
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.queries.listing import runs
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.config_files import config_names
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.stages import SOURCE, Stage, find_stage, stage_key, train_stage

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),  # the frozen encoder
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty"),  # a resumed run's
]

DIFFERENT = {
    "learning rate": replace(ENCODER, flags=(*ENCODER.flags, "--model.lr", "0.01")),
    "data": replace(ENCODER, flags=(*ENCODER.flags, "--data.train_per_class", "19")),
    "added option": replace(
        ENCODER, flags=(*ENCODER.flags, "--model.lr_schedule", "inverse_time", "--model.lr_decay", "0.1")
    ),
    "trainer": replace(ENCODER, flags=(*ENCODER.flags, "--trainer.gradient_clip_val", "1")),
    "preset": replace(ENCODER, quick=("--trainer.max_steps", "5")),
    "source": replace(ENCODER, source=replace(ENCODER, flags=(*ENCODER.flags, "--model.lr", "0.01"))),
    "checkpoint of the source": replace(ENCODER, source=ENCODER, take="last"),
}
SAME = {
    "name": replace(ENCODER, flags=(*ENCODER.flags, "--tracking.experiment", "mine", "--tracking.name", "x")),
    "spelling": replace(ENCODER, flags=(*ENCODER.flags, "--model.lr", "5e-2")),
    "progress bar": replace(ENCODER, flags=(*ENCODER.flags, "--trainer.enable_progress_bar", "false")),
    "added options": replace(
        ENCODER,
        flags=(
            *ENCODER.flags,
            "--model.lr_decay",
            "0",
            "--data.fixed_noise",
            "false",
            "--data.shift",
            "0",
            "--data.flip",
            "false",
        ),
    ),
}


class Kill(Callback):
    """Sends this process a signal at a step."""

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def _train(stage: Stage, seed: int = 0, *callbacks: Callback) -> str:
    with SignalWatch() as watch:
        return train_stage(stage, "full", seed, watch, callbacks)


def _runs() -> list[dict[str, object]]:
    return runs(find_store())


@pytest.mark.parametrize("what", DIFFERENT)
def test_the_key_changes_with_everything_that_affects_the_weights(what: str) -> None:
    assert stage_key(DIFFERENT[what], "quick", 0) != stage_key(ENCODER, "quick", 0)


@pytest.mark.parametrize("what", SAME)
def test_the_key_ignores_what_does_not_affect_the_weights(what: str) -> None:
    assert stage_key(SAME[what], "quick", 0) == stage_key(ENCODER, "full", 0)


def test_the_key_ignores_the_folder_of_the_images(tmp_path: Path) -> None:
    stage = Stage("zhang/cnn")
    assert stage_key(replace(stage, flags=("--data.root", str(tmp_path))), "quick", 0) == stage_key(
        stage, "quick", 0
    )


def test_a_new_option_does_not_change_the_keys_of_stored_trainings() -> None:
    hashed: dict[str, list[str]] = {}
    for config in sorted(name for name in config_names() if name.partition("/")[0] in PAPERS):
        fields = yaml.safe_load(LitCLI(["--config", config]).config_yaml())
        for group in ("model", "data"):
            names = fields[group]["init_args"].keys() - ADDED_OPTIONS[group].keys() - {"root"}
            hashed[fields[group]["class_path"].rpartition(".")[2]] = sorted(names)
        # Lightning 2.5.3 lacks the field enable_autolog_hparams.
        hashed["Trainer"] = sorted({*fields["trainer"], "enable_autolog_hparams"})
    recorded = json.loads(Path(__file__).parents[1].joinpath("stored", "stage_fields.json").read_text())
    assert hashed == recorded, (
        "or every kept result is invalid: add a new field of ours to ADDED_OPTIONS, and leave one that is new in"
        " Lightning's Trainer out of the key (stage_key)"
    )


def test_a_stage_is_trained_once_and_linked_to_its_source(project: Path) -> None:
    first = _train(CLASSIFIER)
    assert _train(CLASSIFIER) == first and len(_runs()) == 2
    encoder = _train(ENCODER)
    assert len(_runs()) == 2
    client = connect(find_store())
    tags = client.get_run(first).data.tags
    assert tags[SOURCE] == tags["mlflow.parentRunId"] == encoder
    assert _weights(first)["encoder.1.weight"].equal(_weights(encoder, "best")["encoder.1.weight"])
    other = _train(ENCODER, seed=1)
    assert other != encoder and len(_runs()) == 3


def test_a_killed_stage_goes_on_as_the_same_run(project: Path) -> None:
    with pytest.raises(Interrupted):
        _train(CLASSIFIER, 0, Kill())
    (killed,) = _runs()  # the encoder; the classifier has not begun
    assert killed["status"] == "KILLED"
    client = connect(find_store())
    assert find_stage(client, stage_key(ENCODER, "full", 0)).info.run_id == killed["id"]
    done = _train(CLASSIFIER)
    assert {run["id"] for run in _runs()} == {done, killed["id"]}
    assert {run["status"] for run in _runs()} == {"FINISHED"}
    assert max(point.step for point in client.get_metric_history(str(killed["id"]), "train/loss")) == 6


def test_a_deleted_run_is_trained_anew(project: Path) -> None:
    first = _train(ENCODER)
    connect(find_store()).delete_run(first)
    assert _train(ENCODER) != first


def _weights(run_id: str, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    path = connect(find_store()).download_artifacts(run_id, f"checkpoints/{checkpoint}.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def test_of_two_processes_that_need_a_stage_one_waits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = stage_key(ENCODER, "full", 7)
    other = FileLock(find_store().home / "stages" / f".{key}.lock", thread_local=False)
    Path(other.lock_file).parent.mkdir(parents=True, exist_ok=True)
    other.acquire()
    before = len(_runs())

    def release_when_awaited() -> None:
        while "waiting for it" not in "".join(messages):
            messages.append(capsys.readouterr().err)
            time.sleep(0.05)
        messages.append(str(len(_runs()) - before))
        other.release()

    messages: list[str] = []
    thread = threading.Thread(target=release_when_awaited, daemon=True)
    thread.start()
    _train(ENCODER, 7)
    thread.join(10)
    assert messages[-1] == "0" and len(_runs()) == before + 1
