"""MLflow's UI in a real browser, as a user walks through a study: the page, the best trial, the list of trials."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from conftest import enter_project
from servers import wait_for

pytestmark = pytest.mark.browser

SHOTS = os.environ.get("LIT_MNIST_SCREENSHOTS")
"""A folder for pictures of the pages, of a larger study; without it none are taken."""
RATES, OPTIMIZERS = (5, ["rmsprop", "adam", "sgd"]) if SHOTS else (2, ["rmsprop", "adam"])
TRIALS = RATES * len(OPTIMIZERS)
SPEC = f"""
study: cnn_lr
config: zhang/cnn
flags: {{data: MiniMNISTDataModule, data.train_size: null, data.train_per_class: 40, data.val_size: 500,
        data.batch_size: 20, model.channels: [4, 8], trainer.max_epochs: 3}}
metric: val/acc
direction: maximize
sampler: {{name: grid}}
space:
  model.lr: {{low: 0.001, high: {0.016 if SHOTS else 0.004}, log: true, points: {RATES}}}
  model.optimizer: {{choices: [{", ".join(OPTIMIZERS)}]}}
"""
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120_000
"""Milliseconds for a page of a server that has just started, on a machine with other work."""


@pytest.fixture(scope="module")
def study_link(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """The link to the study that `lit-mnist ui` prints, while it serves the UI."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_project(tmp_path_factory.mktemp("cnn_lr"), patch)
        Path("cnn_lr.yaml").write_text(SPEC)
        command = [sys.executable, "-m", "lit_mnist.cli"]
        done = subprocess.run([*command, "sweep", "cnn_lr.yaml"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        port = str(20_000 + os.getpid() % 20_000)
        with (
            (folder / "log").open("w") as log,
            subprocess.Popen(
                [*command, "ui", "--port", port], stdout=log, stderr=log, start_new_session=True
            ) as ui,
        ):
            try:
                wait_for(lambda: "Ctrl-C" in (folder / "log").read_text(), "the UI to print its links", 120)
                lines = (folder / "log").read_text().splitlines()
                yield lines[next(i for i, line in enumerate(lines) if "study cnn_lr" in line) + 1].strip()
            finally:
                os.killpg(ui.pid, signal.SIGKILL)


def test_the_six_questions_are_answered_on_the_way_through_a_study(study_link: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: `pip install playwright`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(PATIENCE)
        context.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
            "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"
        )
        page = context.new_page()
        for _ in range(60):  # the server may still start
            try:
                page.goto(study_link)
                break
            except sync_api.Error:
                page.wait_for_timeout(1000)

        # The study's page: best value with its interval, the five best, the picture, the commands.
        page.get_by_text(re.compile(r"Best: ")).first.wait_for()
        page.get_by_text("Show more").click()
        said = page.inner_text("body")
        answer = re.search(
            r"Best: trial (\d+), val/acc (0\.\d+) ± 0\.\d+ \(one seed; 95 % binomial interval", said
        )
        assert answer is not None, said
        assert page.locator("table", has_text="optimizer").first.locator("tbody tr").count() == min(5, TRIALS)
        # All points of the grid were tried: there are no more trials to add.
        assert "lit-mnist sweep best cnn_lr" in said and "--trials" not in said
        picture = page.locator("img[src*='get-artifact']").first
        picture.scroll_into_view_if_needed()
        wait_for_picture(page, picture)
        shoot(page, "study", page.get_by_text("Show less"))

        # The best trial: whole command, its value; a sweep keeps no checkpoint to resume a trial from.
        page = follow(page, f"trial {answer[1]}")
        page.get_by_text(re.compile(r"lit-mnist fit --config zhang/cnn")).first.wait_for()
        page.get_by_text("Show more").first.click()
        trial = page.inner_text("body")
        assert "cannot be resumed" in trial and "fit --resume" not in trial
        mistakes = page.locator("img[src*='val_confusion_matrix']").first
        mistakes.scroll_into_view_if_needed()
        wait_for_picture(page, mistakes)
        shoot(page, "trial", page.get_by_text("Show less"))
        assert "lit-mnist fit --config zhang/cnn" in trial and f"best/val/acc {float(answer[2]):.3f}" in trial

        # Back to the study, and on to the list of trials: sorted, with exactly the swept columns.
        page = follow(page, "study cnn_lr")
        page.get_by_text(re.compile(r"Best: ")).first.wait_for()
        page = follow(page, "All trials, best first")
        cells = page.locator(".ag-center-cols-container .ag-cell[col-id='metrics.`val/acc`'], "
                             ".ag-cell[col-id='metrics.`val/acc`']")  # fmt: skip
        cells.first.wait_for()
        page.wait_for_function(
            f"document.querySelectorAll(\".ag-cell[col-id='metrics.`val/acc`']\").length == {TRIALS}"
        )
        values = [float(text) for text in cells.all_inner_texts()]
        assert values == sorted(values, reverse=True) and values[0] == float(answer[2])
        ids = page.locator(".ag-header-cell").evaluate_all(
            "heads => heads.map(head => head.getAttribute('col-id'))"
        )
        shown = [each for each in ids if each.startswith(("params.", "metrics.", "tags."))]
        assert sorted(shown) == [
            "metrics.`val/acc`", "params.`lr`", "params.`optimizer`", "tags.`interval`", "tags.`sweep.state`",
        ]  # fmt: skip
        shoot(page, "trials", page.locator(f".ag-row[row-index='{TRIALS - 1}'] .ag-cell").first)
        browser.close()


def follow(page, name: str):
    """Click a link of a description; returns its page, which MLflow opens in a tab of its own."""
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=name).first.click()
    return opened.value


def wait_for_picture(page, picture) -> None:
    page.wait_for_function("image => image.complete && image.naturalWidth > 100", arg=picture.element_handle())


def shoot(page, name: str, last) -> None:
    """Take a picture of the page, as high as it must be to show everything down to the element `last`."""
    if SHOTS:
        page.add_style_tag(content="[data-assistant-ui] { display: none }")
        page.set_viewport_size({"width": 1280, "height": 3000})
        page.wait_for_timeout(3000)
        box = last.bounding_box()
        page.screenshot(
            path=f"{SHOTS}/mlflow_{name}.png",
            clip={"x": 0, "y": 0, "width": 1280, "height": box["y"] + box["height"] + 20},
        )
