"""`--plan` estimates the time and disk space of a sweep, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cli
from small import run_small_study, spec_text

from lit_mnist.sweeps.timing import step_seconds

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def _plan(cli: Cli, *arguments: str, **changes: Any) -> tuple[int, str, str]:
    Path("small.yaml").write_text(spec_text(**changes))
    return cli("sweep", "small.yaml", "--plan", *arguments)


def test_a_plan_leaves_nothing_behind(cli: Cli, project: Path) -> None:
    code, out, _ = _plan(cli, "--workers", "2", "--trials", "7", repeats=2, space={
        "model.lr": {"low": 1e-3, "high": 1e6, "log": True},  # at this rate training diverges at once
        "data.batch_size": {"choices": [10, 25]},
    })  # fmt: skip
    assert code == 0
    lines = {line[:14].strip(): line for line in out.splitlines()}
    assert "small (new)" in out and "7, each with seeds 0, 1" in lines["trials"]
    assert "2 workers" in lines["in all"] and "MB" in lines["disk"] and "10, 25" in lines["data.batch_siz"]
    assert {path.name for path in project.iterdir()} == {"pyproject.toml", "small.yaml"}


def test_a_plan_estimates_the_disk_and_compares_with_the_stored_study(cli: Cli, project: Path) -> None:
    wide = {"model.channels": [16, 16]}
    _, out, _ = _plan(cli, trials=1, flags=wide)
    planned = float(next(line for line in out.splitlines() if line.startswith("disk")).split()[2])
    run_small_study(trials=1, flags=wide)
    taken = sum(path.stat().st_size for path in project.joinpath("mlruns").rglob("*.ckpt")) / 1e6
    assert planned == pytest.approx(taken, rel=0.3, abs=0.1)

    code, out, _ = _plan(cli, trials=1, flags=wide)
    assert code == 0 and "1 of 1 trials finished" in out
    other = {"model.lr": {"low": 1e-3, "high": 0.2, "log": True}}
    code, _, err = _plan(cli, trials=1, flags=wide, space=other)
    assert code == 2 and "model.lr" in err and "0.2" in err


@pytest.mark.filterwarnings("ignore:.*encoder.* has random weights")
def test_a_plan_tries_both_phases_of_a_training_that_unfreezes_its_encoder(cli: Cli, project: Path) -> None:
    disk = {}
    for frozen in (1, 2):
        flags = {
            "data": "MiniMNISTDataModule", "data.train_size": None, "data.train_per_class": 4, "data.val_size": 50,
            "data.batch_size": 10, "model.encoder_args": {"blocks": [[64], [64]]}, "model.hidden_sizes": [8],
            "model.frozen_epochs": frozen, "trainer.max_epochs": 2, "trainer.accumulate_grad_batches": 2,
        }  # fmt: skip
        spec = {
            "study": "phases", "config": "panagakis/classifier", "flags": flags, "metric": "val/acc",
            "direction": "maximize", "space": {"model.lr": {"choices": [0.1]}}, "sampler": "grid",
        }  # fmt: skip
        Path("phases.yaml").write_text(yaml.safe_dump(spec))
        code, out, err = cli("sweep", "phases.yaml", "--plan", "--trials", "1")
        assert code == 0, err
        disk[frozen] = next(line for line in out.splitlines() if line.startswith("disk")).split()[2]
    # Adam stores a state of all weights that it trains: of the encoder's (0.3 MB) only if it is unfrozen.
    assert float(disk[1]) > float(disk[2])


def test_the_time_of_a_step_includes_all_batches_that_it_accumulates() -> None:
    warm_up = [9.0] * 4
    assert step_seconds([*warm_up, 1, 1, 1, 7, 1], 1) == 1  # a single slow batch does not count
    assert step_seconds([*warm_up, 1, 3, 1, 3, 1], 2) == 4
    assert step_seconds([*warm_up, 1, 3], 8) == 16


@pytest.mark.parametrize("plan", [["--plan"], []])
@pytest.mark.parametrize(("flags", "message"), [
    ({"data": "MNISTDataModule", "data.root": "nowhere"}, "MNIST not found: looked for nowhere"),
    ({"data.train_per_class": 391}, "MiniMNIST's class 0 has only 390 images"),
])  # fmt: skip
def test_missing_data_are_reported_before_a_study_exists(
    cli: Cli, project: Path, flags: dict[str, Any], message: str, plan: list[str]
) -> None:
    Path("small.yaml").write_text(spec_text(flags=flags))
    code, _, err = cli("sweep", "small.yaml", *plan)
    assert code and message in err and "Traceback" not in err
    assert "no study" in cli("sweep", "status", "small")[2]


@pytest.mark.parametrize("plan", [["--plan"], []])
def test_a_misspelt_name_is_refused_with_the_nearest_one(cli: Cli, project: Path, plan: list[str]) -> None:
    Path("small.yaml").write_text(spec_text(space={"model.lerning_rate": {"low": 0.1, "high": 1}}))
    code, _, err = cli("sweep", "small.yaml", *plan)
    assert code == 2 and "--model.lerning_rate: CNN has no lerning_rate" in err
    assert not list(project.glob("mlruns/*.db"))


@pytest.mark.parametrize("plan", [["--plan"], []])
def test_more_trials_than_the_grid_has_points_are_refused(cli: Cli, project: Path, plan: list[str]) -> None:
    grid = {"model.lr": {"choices": [0.01, 0.1]}}
    Path("small.yaml").write_text(spec_text(sampler="grid", space=grid, trials=2))
    code, _, err = cli("sweep", "small.yaml", "--trials", "3", *plan)
    assert code == 2 and "trials: 3, but the grid has 2 points" in err
    assert "no study" in cli("sweep", "status", "small")[2]
