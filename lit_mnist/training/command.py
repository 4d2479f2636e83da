"""Arguments and help of `lit-mnist fit`, `validate`, `test`, `predict` and `export`; without heavy imports."""

import gc
from pathlib import Path
from typing import Literal

from lit_mnist.signals import SignalWatch
from lit_mnist.terminal import Parser, quiet
from lit_mnist.training.config_files import config_names

FIT_HELP = """\
usage: lit-mnist fit --config NAME_OR_PATH [--GROUP.FIELD VALUE ...]
       lit-mnist fit --resume RUN_ID|last [--GROUP.FIELD VALUE ...]

Train a model as one MLflow run, or resume an interrupted run.

  --config zhang/cnn            a packaged configuration, or the path of a YAML file
  --model.lr 0.01               any field of the model, the data, the trainer (Lightning's) or tracking
  --data KMNISTDataModule       another dataset: MNIST-, FashionMNIST-, KMNIST- or MiniMNISTDataModule
  --trainer.max_epochs 5
  --seed_everything 1
  --threads 1                   CPU threads; another number changes results in the last digits
  --checkpoint.every_n_steps 500  (and .every_n_minutes 5) how often a checkpoint to resume from is saved
  --resume last                 resume the newest unfinished run, or the run of an id; other flags override its own
  --offline                     contact no tracking store; `lit-mnist sync` uploads the run later
  --print_config                print the whole configuration as YAML, and train nothing

  --model.help CNN              the fields of a model
  --data.help MNISTDataModule   the fields of a dataset
  --help.fields                 the fields of trainer and tracking

packaged configurations:
"""


def fit(arguments: list[str]) -> None:
    """Train a model, or resume a run; LightningCLI parses every flag but `--resume` and `--offline`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(FIT_HELP + "\n".join(f"  {name}" for name in config_names()))
        return
    # Imports create a million objects that live on; collecting garbage among them is a tenth of the start-up time.
    gc.disable()
    from lit_mnist.training.fit import fit

    quiet()
    # Until here a signal ends the process at once (`end_at_once`); from here on the run is saved first.
    with SignalWatch() as watch:
        # `fit --help` prints the text above; LightningCLI's own help lists every field.
        fit(["--help" if argument == "--help.fields" else argument for argument in arguments], watch=watch)


def validate(arguments: list[str]) -> None:
    """Measure a run's checkpoint on the validation images."""
    _measure("validate", "Measure a run's checkpoint on the validation images.", arguments)


def test(arguments: list[str]) -> None:
    """Measure a run's checkpoint on the test images."""
    _measure("test", "Measure a run's checkpoint on the test images, and log it to the run.", arguments)


def predict(arguments: list[str]) -> None:
    """Label images, or reconstruct them."""
    parser = _run_parser("predict", "Label images, or reconstruct them, with a run's checkpoint.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="of any size and mode")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for reconstructions (default: here)")
    # Parsed before torch is imported, so that a mistyped flag is reported at once.
    known = parser.parse_args(arguments)
    from lit_mnist.training.evaluate import predict

    quiet()
    predict(known.run, known.checkpoint, known.images, known.out)


def export(arguments: list[str]) -> None:
    """Write a run's network as a file that loads without this package, or as an MLflow model."""
    parser = Parser(
        "lit-mnist export",
        description="Write a run's network as a file that loads without lit_mnist, or as an MLflow model. It takes"
        " images (B, C, H, W) in [0, 1], and gives what `predict` gives: probabilities or reconstructions.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", metavar="RUN_ID", help="a run's id, its beginning, or last; for a study's run, its best trial"
    )
    parser.add_argument("--format", choices=("pt2", "onnx", "mlflow"), default="pt2", help="(default: pt2)")
    _add_checkpoint(parser)
    parser.add_argument("--output", type=Path, metavar="PATH", help="file to write; for mlflow, folder of a copy")
    parser.add_argument("--register", metavar="NAME", help="name in MLflow's model registry (--format mlflow)")
    known = parser.parse_args(arguments)
    from lit_mnist.training.export import export

    quiet()
    export(known.run, known.format, known.checkpoint, known.output, known.register)


def _measure(verb: Literal["validate", "test"], description: str, arguments: list[str]) -> None:
    # Unknown arguments are flags of `fit` that override the run's configuration; LitCLI checks them.
    known, overrides = _run_parser(verb, description).parse_known_args(arguments)
    from lit_mnist.training.evaluate import evaluate

    quiet()
    evaluate(verb, known.run, known.checkpoint, overrides)


def _run_parser(verb: str, description: str) -> Parser:
    parser = Parser(f"lit-mnist {verb}", description=description, allow_abbrev=False)
    parser.add_argument(
        "--run",
        required=True,
        metavar="RUN_ID",
        help="the run's id, the beginning of its id, or last (the newest run)",
    )
    _add_checkpoint(parser)
    return parser


def _add_checkpoint(parser: Parser) -> None:
    parser.add_argument("--checkpoint", default="best", help="best (default), last, or the path of a file")
