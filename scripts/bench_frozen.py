"""What training on a frozen encoder costs when its codes are computed once, against the plain way.

The frozen phase of panagakis/classifier, in images per second of an epoch; and softmax layers on the frozen stack
784-500-200-100 for 100 choices of 5 labelled images per class, against one `Trainer.fit` of one of them. Both ways
alternate, and the ratio of processor seconds is printed too, which other work on the machine changes less.
"""

import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from lightning.pytorch import Trainer

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.models import StackedClassifier, TwoPhaseClassifier
from lit_mnist.models.common import encoder_classifier
from lit_mnist.papers.report.heads import Heads, train_heads

BLOCKS = [[32, 32], [64], [128, 256]]
EPOCHS = 100
"""Frozen epochs in the paper: the codes are computed in the first one."""
LIMIT = 2
"""Epochs that are measured after the first."""


def bench_frozen(repeats: int) -> None:
    """Print images per second with and without cached codes, and seconds for the layers of 100 label draws."""
    data = MiniMNISTDataModule(train_per_class=200, val_size=256, batch_size=256)
    data.setup("fit")
    images = data.sizes()["train"]
    first, later, plain = [], [], []
    for _ in range(repeats):
        whole = _processor_seconds(lambda: _fit(data, 1 + LIMIT))
        later.append((_processor_seconds(lambda: _fit(data, 1 + 5 * LIMIT)) - whole) / (4 * LIMIT))
        first.append(whole - LIMIT * later[-1])
        with mock.patch.object(encoder_classifier, "_fits", return_value=False):
            once = _processor_seconds(lambda: _fit(data, 1))
            plain.append((_processor_seconds(lambda: _fit(data, 1 + LIMIT)) - once) / LIMIT)
    medians = {name: statistics.median(values) for name, values in
               {"cached": later, "plain": plain, "first": first}.items()}  # fmt: skip
    print("\nThe frozen phase of panagakis/classifier, batches of 256, images per processor second:")
    for name in ("plain", "cached"):
        print(f"  {name:<8} {images / medians[name]:10,.0f}")
    phase = statistics.median(
        p * EPOCHS / (f + c * (EPOCHS - 1)) for p, f, c in zip(plain, first, later, strict=True)
    )
    print(f"  {phase:.1f} times as many over {EPOCHS} epochs, the computation of the codes included")
    _bench_heads()


def _fit(data: MiniMNISTDataModule, epochs: int) -> None:
    arguments = {"encoder": "BatchNormAutoencoder", "encoder_args": {"blocks": BLOCKS}, "hidden_sizes": [128]}
    model = TwoPhaseClassifier(frozen_epochs=EPOCHS, **arguments)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet).fit(model, data)


def _bench_heads() -> None:
    data = MiniMNISTDataModule(train_per_class=5, batch_size=50, val_size=256)
    data.setup("fit")
    assert data.train is not None
    model = StackedClassifier([500, 200, 100], optimizer="sgd", lr=1.0)
    with torch.no_grad():
        codes = model.encoder(data.train[0].float().div(255)).expand(100, -1, -1).contiguous()
    labels = data.train[1].expand(100, -1)
    heads = Heads.initial(100, 100, 10, torch.Generator().manual_seed(0))
    together = _processor_seconds(lambda: train_heads(heads, codes, labels, 1.0, 2000))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=200, max_epochs=-1, accelerator="cpu", enable_model_summary=False, **quiet)
    alone = 10 * _processor_seconds(lambda: trainer.fit(model, data))
    print(f"2,000 steps of fine-tuning on 50 labels: 100 layers together {together:.1f} processor seconds,")
    print(f"  one in a fit {alone:.1f}: {100 * alone / together:,.0f} times as many")


def _processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
