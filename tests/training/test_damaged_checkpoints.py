"""A damaged checkpoint costs only the steps since the checkpoint before it."""

import shutil
from pathlib import Path

import pytest
import torch
from interrupting import CNN, assert_same, same_tensors, train

from lit_mnist.errors import UserError
from lit_mnist.training.checkpoints.files import BEST, LAST, NEXT, PREVIOUS, AtomicCheckpointIO
from lit_mnist.training.checkpoints.resume_point import choose_checkpoint
from lit_mnist.training.configuration import LitCLI


def _damage(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "bit flipped":
        raw[len(raw) // 2] ^= 4
    elif how == "tail cut off":
        del raw[-2000:]
    elif how == "empty":
        raw.clear()
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["bit flipped", "tail cut off", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(how: str, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", CNN)
    folder = tmp_path / "parts"
    train(folder, CNN, (12, "batch end"), checkpoint_every=5)
    _damage(folder / LAST, how)
    with pytest.warns(UserWarning, match=f"{LAST} .*damaged.* taking {PREVIOUS}"):
        rest = train(folder, CNN)
    assert min(step for _, step in rest.points) == 12
    assert same_tensors(list(rest.weights.values()), list(whole.weights.values()))
    assert rest.decisions == whole.decisions


def test_a_damaged_best_checkpoint_is_recomputed_from_an_earlier_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", CNN)
    folder = tmp_path / "parts"
    train(folder, CNN, (8, "batch end"), checkpoint_every=5)
    _damage(folder / BEST, "bit flipped")
    with pytest.warns(UserWarning, match=f"{BEST} .*damaged.* going on from {PREVIOUS}, which makes it again"):
        rest = train(folder, CNN)
    assert min(step for _, step in rest.points) == 6
    assert rest.decisions == whole.decisions
    weights = [torch.load(at / BEST, weights_only=True)["state_dict"] for at in (folder, tmp_path / "whole")]
    assert same_tensors(list(weights[0].values()), list(weights[1].values()))


@pytest.mark.parametrize("is_older", [True, False])
def test_a_best_checkpoint_that_is_older_than_the_last_one_needs_is_not_used(
    is_older: bool, tmp_path: Path
) -> None:
    """A store may hold such a pair, since one of the two is uploaded after the other."""
    whole = train(tmp_path / "whole", CNN)
    pairs = {step: tmp_path / str(step) for step in (8, 22)}
    for step, folder in pairs.items():
        train(folder, CNN, (step, "batch end"))
        (folder / PREVIOUS).unlink(missing_ok=True)
    older, later = pairs.values()
    read = [torch.load(folder / BEST, weights_only=True)["global_step"] for folder in (older, later)]
    assert read[0] < read[1], "both checkpoints have the same best one"
    if is_older:
        shutil.copy(older / BEST, later / BEST)
        with pytest.warns(UserWarning, match=f"{BEST} is older than the best checkpoint of {LAST}; the best"):
            train(later, CNN)
        return
    shutil.copy(later / BEST, older / BEST)
    rest = train(older, CNN)
    assert rest.decisions == whole.decisions
    weights = [torch.load(at / BEST, weights_only=True)["state_dict"] for at in (older, tmp_path / "whole")]
    assert same_tensors(list(weights[0].values()), list(weights[1].values()))


def test_no_usable_checkpoint_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, CNN, (12, "batch end"), checkpoint_every=5)
    cli = LitCLI([*CNN, "--model.channels", "[4,9]"])
    with pytest.raises(UserError, match=r"no checkpoint in .* can be resumed: .*network.3.weight has shape"):
        choose_checkpoint(tmp_path, cli.model)
    for name in (LAST, PREVIOUS):
        _damage(tmp_path / name, "tail cut off")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be resumed"):
        train(tmp_path, CNN)


def test_an_error_in_the_saved_state_is_not_reported_as_a_disk_error(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> str:
            raise RuntimeError("this state cannot be saved")

    with pytest.raises(RuntimeError, match="this state cannot be saved"):
        AtomicCheckpointIO().save_checkpoint({"state": Broken()}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("renamed", [False, True])
def test_a_training_killed_between_the_renames_of_a_save_goes_on_from_the_new_checkpoint(
    renamed: bool, tmp_path: Path
) -> None:
    whole, folder = train(tmp_path / "whole", CNN), tmp_path / "parts"
    part = train(folder, CNN, (12, "batch end"), checkpoint_every=5)
    (folder / LAST).rename(folder / NEXT)
    if not renamed:
        (folder / PREVIOUS).rename(folder / LAST)
    assert_same(whole, [part, train(folder, CNN)])
