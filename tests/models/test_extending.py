"""The examples of docs/extending.md work as they are written."""

import re
from pathlib import Path

import pytest
from conftest import Cli

from lit_mnist.data import ImageDataModule
from lit_mnist.data.datasets import DatasetSpec
from lit_mnist.tracking.run import open_run

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(YAML,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_a_new_architecture_is_one_file_and_one_yaml(
    project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = (text for text in PYTHON if "class WideNet" in text)
    (project / "wide_net.py").write_text(source)
    (project / "wide_net.yaml").write_text(YAML.replace("lit_mnist.models.WideNet", "wide_net.WideNet"))
    monkeypatch.syspath_prepend(project)
    small = ("--data", "MiniMNISTDataModule", "--data.train_per_class", "20", "--trainer.max_steps", "4")
    code, out, err = cli("fit", "--config", "wide_net.yaml", *small, "--model.channels", "16")
    assert code == 0, err
    with open_run("", run_id=out.split()[1]) as run:
        params = run.data().data.params
    assert (params["model"], params["channels"], params["num_classes"], params["lr"]) == (
        "WideNet", "16", "10", "0.003",
    )  # fmt: skip
    with pytest.raises(SystemExit):
        cli("fit", "--model.help", "wide_net.WideNet")
    assert "Output channels of the convolution." in " ".join(capsys.readouterr().out.split())


def test_models_and_data_modules_work_without_the_command_line() -> None:
    (source,) = (text for text in PYTHON if "Trainer(" in text)
    namespace: dict[str, object] = {}
    exec(
        source.replace("max_epochs=1", "max_epochs=1, limit_train_batches=2, enable_progress_bar=False"), namespace
    )
    assert namespace["trainer"].global_step == 2


def test_a_new_dataset_is_one_specification() -> None:
    (source,) = (text for text in PYTHON if "DatasetSpec(" in text)
    namespace: dict[str, object] = {}
    exec(source, namespace)
    spec = namespace["SHAPES"]
    assert isinstance(spec, DatasetSpec) and spec.num_classes == 7

    class ShapesDataModule(ImageDataModule):
        spec = namespace["SHAPES"]

    assert ShapesDataModule().image_shape == (3, 32, 32)
