"""MLflow's UI of a study in a real browser: the study's page, its best trial, and the list of its trials."""

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

SCREENSHOTS = os.environ.get("LIT_MNIST_SCREENSHOTS")
"""A folder for screenshots, which are of a larger study; if it is not set, none are taken."""
RATES, OPTIMIZERS = (5, ["rmsprop", "adam", "sgd"]) if SCREENSHOTS else (2, ["rmsprop", "adam"])
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
  model.lr: {{low: 0.001, high: {0.016 if SCREENSHOTS else 0.004}, log: true, points: {RATES}}}
  model.optimizer: {{choices: [{", ".join(OPTIMIZERS)}]}}
"""
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TIMEOUT = 120_000
"""Milliseconds for a page, since the server has just started and the machine may be busy."""


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


def test_a_study_shows_its_best_trial_how_to_go_on_and_the_list_of_trials(study_link: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: `pip install playwright`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(TIMEOUT)
        context.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
            "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"
        )
        page = context.new_page()
        for _ in range(60):  # the server may still be starting
            try:
                page.goto(study_link)
                break
            except sync_api.Error:
                page.wait_for_timeout(1000)

        # The study's page: best value with its interval, the five best trials, a figure, the commands.
        page.get_by_text(re.compile(r"Best: ")).first.wait_for()
        page.get_by_text("Show more").click()
        text = page.inner_text("body")
        answer = re.search(
            r"Best: trial (\d+), val/acc (0\.\d+) ± 0\.\d+ \(one seed; 95 % binomial interval", text
        )
        assert answer is not None, text
        assert page.locator("table", has_text="optimizer").first.locator("tbody tr").count() == min(5, TRIALS)
        # All points of the grid were tried: there are no more trials to add.
        assert "lit-mnist sweep best cnn_lr" in text and "--trials" not in text
        image = page.locator("img[src*='get-artifact']").first
        image.scroll_into_view_if_needed()
        wait_for_image(page, image)
        take_screenshot(page, "study", page.get_by_text("Show less"))

        # The best trial: whole command, its value; a sweep keeps no checkpoint to resume a trial from.
        page = open_link(page, f"trial {answer[1]}")
        page.get_by_text(re.compile(r"lit-mnist fit --config zhang/cnn")).first.wait_for()
        page.get_by_text("Show more").first.click()
        trial = page.inner_text("body")
        assert "cannot be resumed" in trial and "fit --resume" not in trial
        mistakes = page.locator("img[src*='val_confusion_matrix']").first
        mistakes.scroll_into_view_if_needed()
        wait_for_image(page, mistakes)
        take_screenshot(page, "trial", page.get_by_text("Show less"))
        assert "lit-mnist fit --config zhang/cnn" in trial and f"best/val/acc {float(answer[2]):.3f}" in trial

        # Back to the study, and then the list of trials: sorted, with exactly the columns of the sweep.
        page = open_link(page, "study cnn_lr")
        page.get_by_text(re.compile(r"Best: ")).first.wait_for()
        page = open_link(page, "All trials, best first")
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
        take_screenshot(page, "trials", page.locator(f".ag-row[row-index='{TRIALS - 1}'] .ag-cell").first)
        browser.close()


def open_link(page, name: str):
    """Click a link of a description; returns the page, which MLflow opens in a new tab."""
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=name).first.click()
    return opened.value


def wait_for_image(page, image) -> None:
    page.wait_for_function("image => image.complete && image.naturalWidth > 100", arg=image.element_handle())


def take_screenshot(page, name: str, last) -> None:
    """Take a screenshot of the page down to the element `last`, if SCREENSHOTS is set."""
    if SCREENSHOTS:
        page.add_style_tag(content="[data-assistant-ui] { display: none }")
        page.set_viewport_size({"width": 1280, "height": 3000})
        page.wait_for_timeout(3000)
        box = last.bounding_box()
        page.screenshot(
            path=f"{SCREENSHOTS}/mlflow_{name}.png",
            clip={"x": 0, "y": 0, "width": 1280, "height": box["y"] + box["height"] + 20},
        )
