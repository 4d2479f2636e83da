"""The examples of docs/extending.md work as they are written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lit_mnist
from lit_mnist.data import ImageDataModule
from lit_mnist.data.datasets import DatasetSpec
from lit_mnist.tracking.run import open_run

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(YAML,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_a_new_architecture_is_one_file_and_one_yaml(project: Path) -> None:
    (source,) = (text for text in PYTHON if "class WideNet" in text)
    package = project / "lit_mnist"
    shutil.copytree(Path(lit_mnist.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "models" / "wide_net.py").write_text(source)
    (package / "configs" / "mine").mkdir()
    (package / "configs" / "mine" / "wide_net.yaml").write_text(YAML)
    environment = {**os.environ, "PYTHONPATH": str(project)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "lit_mnist.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ("--data", "MiniMNISTDataModule", "--data.train_per_class", "20", "--trainer.max_steps", "4")
    out = run("fit", "--config", "mine/wide_net", *small, "--model.channels", "16")
    with open_run("", run_id=out.split()[1]) as found:
        params = found.data().data.params
    assert (params["model"], params["channels"], params["num_classes"], params["lr"]) == (
        "WideNet", "16", "10", "0.003",
    )  # fmt: skip
    assert "Output channels of the convolution." in " ".join(run("fit", "--model.help", "WideNet").split())


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
