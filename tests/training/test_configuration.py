"""Every shipped configuration parses; a wrong flag or file gives a one-line error with the nearest name."""

from pathlib import Path

import pytest
import yaml
from conftest import SHORT, Cli

from lit_mnist.errors import UsageError
from lit_mnist.models import MLP
from lit_mnist.training.config_files import config_names, config_path
from lit_mnist.training.configuration import LitCLI

BASE = ["--config", "zhang/cnn", "--data", "MiniMNISTDataModule"]


@pytest.mark.parametrize("name", config_names())
def test_a_shipped_config_parses_and_describes_itself(name: str) -> None:
    cli = LitCLI(["--config", name])
    assert type(cli.model).__name__ == cli.params()["model"]
    assert cli.config.tracking.experiment == name
    text = config_path(name).read_text()
    assert text.startswith("# ") and f"#   lit-mnist fit --config {name}\n" in text
    for group in ("model", "data"):
        given = yaml.safe_load(text)[group]["init_args"]
        assert given.items() <= cli.config[group]["init_args"].as_dict().items()


def test_flags_override_the_config_and_another_dataset_keeps_its_settings() -> None:
    flags = ["--model.lr", "0.1", "--model.channels", "[4,8]", "--data.batch_size=7", "--trainer.max_steps", "3"]
    params = LitCLI([*BASE, *flags]).params()
    assert (params["lr"], params["channels"], params["batch_size"], params["max_steps"]) == (0.1, [4, 8], 7, 3)
    assert params["data"] == "MiniMNISTDataModule" and params["val_size"] == 0.1


class Fixed(MLP):
    """A user's model that has nothing to configure."""

    def __init__(self) -> None:
        super().__init__(hidden_sizes=[8])


def test_a_model_without_arguments_can_be_trained(project: Path, cli: Cli) -> None:
    flags = [*SHORT, "--trainer.max_steps", "2"]
    code, out, err = cli("fit", "--model", "test_configuration.Fixed", "--data", "MiniMNISTDataModule", *flags)
    assert code == 0, err
    code, out, err = cli("fit", "--resume", out.split()[1], "--trainer.max_steps", "3")
    assert code == 0 and "goes on from step 2" in out, err


def test_the_data_use_the_seed_of_the_run_unless_they_have_their_own() -> None:
    assert LitCLI([*BASE, "--seed_everything", "5"]).datamodule.seed == 5
    assert LitCLI([*BASE, "--seed_everything", "5", "--data.seed", "2"]).datamodule.seed == 2


def test_the_complete_config_gives_the_same_parameters(tmp_path: Path) -> None:
    first = LitCLI([*BASE, "--model.lr", "0.1", "--seed_everything", "3"])
    (tmp_path / "config.yaml").write_text(first.config_yaml())
    assert LitCLI(["--config", str(tmp_path / "config.yaml")]).params() == first.params()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model.lrr", "0.1"], "--model.lrr: CNN has no lrr; did you mean lr?"),
        (["--model.lr", "abc"], "--model.lr: expected float, not abc"),
        (["--modle.lr", "1"], "there is no --modle.lr; did you mean --model.lr?"),
        (["--lr", "1"], "there is no --lr; did you mean --model.lr?"),
        (["--trainer.max_epoch", "3"], "there is no --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        (["--trainer.max_epochs", "x"], "--trainer.max_epochs: expected int or null, not x"),
        (["--model", "CNNN"], "--model CNNN: there is no such class; did you mean CNN?"),
        (["--data.batch_sise", "3"], "--data.batch_sise: MiniMNISTDataModule has no batch_sise; did you mean batch_size?"),  # noqa: E501
        (["--model.optimizer", "sdg"], "--model.optimizer: expected one of 'sgd', 'adam', 'rmsprop', not sdg"),
        (["--model.momentum", "0.9"], "--model.momentum 0.9 has no effect on adam"),
        (["--config", "zhang/cn"], "--config zhang/cn: no such file or packaged configuration; did you mean zhang/cnn?"),  # noqa: E501
        (["--config"], "--config needs a name or a path"),
        (["--model.channels", "[]"], "--model.channels [] and --model.kernel_size 5 must be at least 1"),
        (["--data.corruption", "gaussian"], "--data.corruption gaussian has no effect without --data.noise"),
        (["stray"], "'stray' is not a flag"),
    ],
)  # fmt: skip
def test_the_error_for_a_wrong_flag_is_one_line_with_the_nearest_name(flags: list[str], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        LitCLI([*BASE, *flags])
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: {init_args: {lrr: 0.1}}", "--model.lrr: CNN has no lrr; did you mean lr?"),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch: trainer has no max_epoch; did you mean max_epochs?"),
        (
            "model: {class_path: lit_mnist.models.CNNN}",
            "--model lit_mnist.models.CNNN: there is no such class; did you mean CNN?",
        ),
        # Not similar to any class, whatever classes other test files of the same process define.
        ("model: {class_path: nowhere.Zyx}", "--model nowhere.Zyx: there is no such class; there are "),
        (
            "model: {class_path: torch.nn.Linear}",
            "--model torch.nn.Linear: does not correspond to a subclass of LitModel",
        ),
        ("model: {class_path: own_net.OwnNet}", "--model own_net.OwnNet: No module named 'missing_package'"),
        ("modle: {lr: 3}", "modle.lr: no such field; did you mean model.lr?"),
        ("model: [", "--config {path}, line 2: "),
        ("just words", "--config {path} holds no fields"),
    ],
)
def test_the_error_for_a_wrong_config_is_one_line_with_the_nearest_name(
    text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text("import missing_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "wrong.yaml"
    path.write_text(text + "\n")
    with pytest.raises(UsageError) as caught:
        LitCLI([*BASE, "--config", str(path)])
    assert str(caught.value).startswith(line.format(path=path))
    assert "\n" not in str(caught.value)


def test_model_and_data_have_to_be_named() -> None:
    with pytest.raises(UsageError, match="--model is missing"):
        LitCLI(["--data", "MiniMNISTDataModule"])
