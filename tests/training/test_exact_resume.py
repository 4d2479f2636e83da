"""A training that is interrupted after any step and resumed equals the undisturbed one, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import CNN, Signal, assert_same, same_tensors, train
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.data.loader import InMemoryLoader
from lit_mnist.training.checkpoints.files import BEST, LAST, PREVIOUS, STATE
from lit_mnist.training.checkpoints.limits import stop_reason

ADAM = ["--model.optimizer", "adam", "--model.momentum", "0", "--model.lr", "0.003"]
RMSPROP = ["--model.optimizer", "rmsprop", "--model.lr", "0.0005"]
VALIDATE_BY_STEPS = ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "5"]
SETTINGS = {
    "sgd": [],
    "adam": ADAM,
    "rmsprop": RMSPROP,
    "truncated epoch": ["--trainer.max_epochs", "-1", "--trainer.max_steps", "25"],
    "validation within epochs": ["--trainer.val_check_interval", "0.5"],
    "validation by steps": VALIDATE_BY_STEPS,
    "validation every other epoch": ["--trainer.check_val_every_n_epoch", "2"],
    "accumulated gradients": ["--trainer.accumulate_grad_batches", "2"],
    "clipped gradients": ["--trainer.gradient_clip_val", "0.5"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_interrupted_training_equals_the_undisturbed_one(setting: str, tmp_path: Path) -> None:
    flags = [*CNN, *SETTINGS[setting]]
    whole = train(tmp_path / "whole", flags)
    # An epoch has 7 steps. The trainings are interrupted twice each: in mid-epoch, at an epoch's end, in mid-step.
    for number, steps in enumerate([(4, 7), (13, 14)]):
        folder = tmp_path / str(number)
        moments = ("batch end", "backward" if number == 1 else "batch end")
        parts = [train(folder, flags, stop) for stop in zip(steps, moments, strict=True)]
        assert not any(part.ended for part in parts)
        assert_same(whole, [*parts, train(folder, flags)])


@pytest.mark.parametrize("flags", [[], VALIDATE_BY_STEPS])
def test_a_signal_during_validation_waits_for_its_end(flags: list[str], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", [*CNN, *flags])
    part = train(tmp_path / "parts", [*CNN, *flags], (10 if flags else 14, "validation"))
    assert not part.ended and any(name == "val/loss" for name, _ in part.points)
    assert_same(whole, [part, train(tmp_path / "parts", [*CNN, *flags])])


def test_early_stopping_stops_at_the_same_step_and_stays_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", CNN, patience=1)
    assert whole.trainer.global_step < 28
    part = train(tmp_path / "parts", CNN, (12, "batch end"), patience=1)
    assert_same(whole, [part, train(tmp_path / "parts", CNN, patience=1)])
    again = train(tmp_path / "parts", CNN, patience=1)
    assert again.trainer.global_step == whole.trainer.global_step and not again.points


ENDLESS = ["--trainer.max_epochs", "-1"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["--trainer.max_epochs", "2"], []),
        ([*ENDLESS, "--trainer.max_steps", "10"], [*ENDLESS, "--trainer.max_steps", "25"]),
    ],
)
def test_a_training_that_ended_goes_on_with_higher_limits(
    first: list[str], then: list[str], tmp_path: Path
) -> None:
    flags = [*CNN, "--model.lr_schedule", "constant"]
    whole = train(tmp_path / "whole", [*flags, *then])
    part = train(tmp_path / "parts", [*flags, *first])
    rest = train(tmp_path / "parts", [*flags, *then])
    assert part.ended and same_tensors(list(rest.weights.values()), list(whole.weights.values()))
    assert whole.points.items() <= (part.points | rest.points).items()
    assert rest.decisions == whole.decisions


def test_after_a_crash_training_is_exact_from_the_last_checkpoint(tmp_path: Path) -> None:
    class Crash(Exception):  # noqa: N818 - not an error of the program
        pass

    whole = train(tmp_path / "whole", CNN)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Signal, "on_train_batch_end", _raise_at(Crash, 12))
        train(tmp_path / "parts", CNN, (0, ""), checkpoint_every=5)
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {BEST, LAST, PREVIOUS}
    steps = [torch.load(tmp_path / "parts" / name, weights_only=True)["global_step"] for name in (LAST, PREVIOUS)]
    assert steps == [10, 5]
    rest = train(tmp_path / "parts", CNN)
    assert rest.points == {(name, step): v for (name, step), v in whole.points.items() if step > 10}
    assert same_tensors(list(rest.weights.values()), list(whole.weights.values()))
    assert rest.decisions == whole.decisions


def _raise_at(kind: type[Exception], step: int) -> Any:
    def hook(self: Callback, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == step:
            raise kind

    return hook


def test_explicit_flags_take_precedence_over_the_checkpoint(tmp_path: Path) -> None:
    flags = [*CNN, "--model.lr_schedule", "constant", "--model.warmup_steps", "0"]
    train(tmp_path, flags, (10, "batch end"))
    rest = train(tmp_path, [*flags, "--model.lr", "0.02", "--model.momentum", "0.5", "--trainer.max_epochs", "3"])
    assert {step: value for (name, step), value in rest.points.items() if name == "lr"} == dict.fromkeys(
        (12, 15, 18, 21), 0.02
    )
    assert rest.trainer.optimizers[0].param_groups[0]["momentum"] == 0.5
    assert rest.trainer.current_epoch == 3


def test_a_larger_patience_replaces_that_of_the_checkpoint(tmp_path: Path) -> None:
    assert train(tmp_path / "whole", CNN, patience=1).trainer.global_step < 28
    train(tmp_path, CNN, (8, "batch end"), patience=1)
    assert train(tmp_path, CNN, patience=9).trainer.global_step == 28


def test_with_more_patience_a_stopped_training_equals_one_that_never_stopped(tmp_path: Path) -> None:
    flags = [*CNN, "--model.lr_schedule", "constant", "--trainer.max_epochs", "5"]
    part = train(tmp_path, flags, patience=1)
    assert part.ended and part.trainer.global_step < 35
    assert not train(tmp_path, [*flags, "--trainer.max_epochs", "6"], patience=1).points
    rest = train(tmp_path, flags, patience=9)
    whole = train(tmp_path / "whole", flags, patience=9)
    assert rest.decisions == whole.decisions
    assert_same(whole, [part, rest])


def test_with_a_higher_time_limit_a_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    flags = [*CNN, "--model.lr_schedule", "constant", "--trainer.max_epochs", "2"]
    # The time limit is reached at once, but 5 steps are the minimum, and the epoch of 7 steps is completed.
    limited = ["--trainer.max_time", "00:00:00:00", "--trainer.min_steps", "5"]
    part = train(tmp_path, [*flags, *limited])
    assert part.ended and part.trainer.global_step == 7
    assert train(tmp_path, [*flags, *limited]).trainer.global_step == 7
    rest = train(tmp_path, [*flags, "--trainer.max_time", "01:00:00:00"])
    whole = train(tmp_path / "whole", flags)
    assert rest.trainer.global_step == 14 and same_tensors(
        list(rest.weights.values()), list(whole.weights.values())
    )
    assert whole.points.items() <= (part.points | rest.points).items()
    (timer,) = (callback for callback in rest.trainer.callbacks if isinstance(callback, Timer))
    saved = torch.load(tmp_path / LAST)["callbacks"][timer.state_key]["time_elapsed"]["train"]
    assert timer._offset > 0 and saved > timer._offset  # the time before the resume counts


def test_a_stopped_training_of_an_earlier_version_goes_on_only_with_more_patience(tmp_path: Path) -> None:
    assert train(tmp_path, CNN, patience=1).trainer.global_step < 28
    content = torch.load(tmp_path / LAST, weights_only=True)
    assert content[STATE].pop("stopped_otherwise") is False
    content[STATE]["should_stop"] = True  # earlier versions wrote only this
    torch.save(content, tmp_path / LAST)
    assert stop_reason(content, []) == "stopped early"
    assert not train(tmp_path, CNN, patience=1).points
    assert train(tmp_path, CNN, patience=9).trainer.global_step == 28


def test_a_schedule_added_on_resume_has_the_value_of_its_step(tmp_path: Path) -> None:
    train(tmp_path, [*CNN, "--model.lr_schedule", "constant", "--model.warmup_steps", "0"], (10, "batch end"))
    rest = train(tmp_path, CNN)
    whole = train(tmp_path / "whole", CNN)
    assert rest.points["lr", 15] == whole.points["lr", 15]


@pytest.mark.parametrize(
    ("first", "then"), [([], ADAM), (ADAM, RMSPROP), (RMSPROP, [*RMSPROP, "--model.momentum", "0"])]
)
def test_another_optimiser_starts_without_a_history(first: list[str], then: list[str], tmp_path: Path) -> None:
    train(tmp_path, [*CNN, *first], (10, "batch end"))
    with pytest.warns(UserWarning, match="another optimiser than the checkpoint's"):
        rest = train(tmp_path, [*CNN, *then])
    assert rest.ended and rest.trainer.global_step == 28
    steps = {float(state["step"]) for state in rest.trainer.optimizers[0].state_dict()["state"].values()}
    assert steps == {18.0}  # of 28, without the 10 of the other optimiser


def test_another_batch_size_goes_on_after_the_same_number_of_images(tmp_path: Path) -> None:
    train(tmp_path, CNN, (11, "batch end"))  # 4 batches of 30 into the second epoch
    rest = train(tmp_path, [*CNN, "--data.batch_size", "20", "--trainer.max_epochs", "2"])
    assert rest.trainer.global_step == 11 + 4  # the 80 images left in the epoch


def test_the_number_of_threads_changes_neither_data_nor_noise() -> None:
    batches = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        data = MiniMNISTDataModule(corruption="gaussian", noise=0.3, rotation=20.0, batch_size=500, seed=1)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    torch.set_num_threads(before)
    for one, other in zip(*batches, strict=True):
        assert same_tensors(list(one), list(other))


@pytest.mark.filterwarnings("ignore:.*random weights", r"ignore:Found \d+ module\(s\) in eval mode")
def test_a_frozen_phase_interrupted_in_mid_epoch_equals_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 130 images, the last batch of 43 holds only one; the size of a batch affects the last bits of codes."""
    encoder = ["--model.encoder", "DenseAutoencoder", "--model.encoder_args", "{hidden_sizes: [32]}"]
    flags = ["--model", "TwoPhaseClassifier", *encoder, "--model.frozen_epochs", "3", *ADAM[4:],
             "--data", "MiniMNISTDataModule", "--data.train_per_class", "13", "--data.val_size", "100",
             "--data.batch_size", "43", "--seed_everything", "3", "--trainer.max_epochs", "4",
             "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]  # fmt: skip
    served = []
    serve = InMemoryLoader.serve
    monkeypatch.setattr(InMemoryLoader, "serve", lambda self, x: (served.append(x is not None), serve(self, x)))
    whole = train(tmp_path / "whole", flags)
    assert served[:2] == [True, True]
    part = train(tmp_path / "parts", flags, (5, "batch end"))
    assert not part.ended
    assert_same(whole, [part, train(tmp_path / "parts", flags)])
