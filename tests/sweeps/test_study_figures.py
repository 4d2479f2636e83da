"""What a study's parent run shows: a summary, images, and a page to explore them."""

import sys
from pathlib import Path

import optuna
import pytest
from matplotlib.text import Text
from optuna.trial import TrialState
from studied import add_trial, make_study, searched

from lit_mnist.sweeps.results.drawing import draw, history
from lit_mnist.sweeps.results.figures import importances, log_summary, main_pair
from lit_mnist.sweeps.results.heat_map import heat_map
from lit_mnist.sweeps.study.summary import read_summary
from lit_mnist.tracking.run import open_run

TWO = (("val/loss", "minimize"), ("parameters", "minimize"))


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def texts(figure) -> list[str]:
    figure.draw_without_rendering()
    return [t.get_text() for t in figure.findobj(lambda artist: isinstance(artist, Text)) if t.get_visible()]


@pytest.mark.parametrize(
    ("count", "objectives", "names"),
    [
        (1, TWO[:1], {"history"}),
        (9, TWO, {"history", "importances", "parallel_coordinates", "heat_map", "pareto_front"}),
    ],
)
def test_a_study_has_the_figures_that_it_has_enough_trials_for(count, objectives, names) -> None:
    found = read_summary(searched(count, objectives))
    shares = importances(found)
    figures = draw(found, shares, main_pair(found, shares))
    assert figures.keys() == names
    for figure in figures.values():
        assert texts(figure)


def test_what_matters_is_found_and_the_map_is_of_rate_and_momentum() -> None:
    found = read_summary(searched(40))
    shares = importances(found)
    assert max(shares, key=shares.__getitem__) == "model.lr"
    assert shares.keys() == {"model.lr", "model.momentum", "model.batch_norm"}
    assert sum(shares.values()) == pytest.approx(1)
    assert main_pair(found, shares) == ("model.lr", "model.momentum")


def test_the_map_marks_every_trial_and_the_given_point() -> None:
    found = read_summary(searched(30))
    figure = heat_map(found, "model.lr", "model.momentum")
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert {"given point: 11.3 %", "pruned", "failed", "95 %"} <= set(texts(figure))
    sizes = sorted(len(c.get_offsets()) for c in axes.collections if len(c.get_offsets()) and c.get_zorder() >= 3)
    assert sizes == [1, 1, 5, 24]  # failed, the ring, pruned, complete
    assert axes.get_xlim()[0] < 0.01 and axes.get_xlim()[1] > 1.0  # the whole space


def test_the_history_shows_the_best_so_far() -> None:
    study = make_study(objectives=TWO[:1])
    for value in (0.5, 0.7, 0.3, 0.4):
        add_trial(study, TrialState.COMPLETE, mean=(value,))
    (line,) = history(read_summary(study)).axes[0].lines
    assert line.get_ydata().tolist() == [0.5, 0.5, 0.3, 0.3]


def test_a_parameter_that_never_varied_has_no_part() -> None:
    study = make_study()
    for number in range(5):
        add_trial(study, TrialState.COMPLETE, 0.1 + 0.04 * number, 0.1 * number, mean=(0.1 * number,))
    found = read_summary(study)
    shares = importances(found)
    assert shares.keys() == {"model.lr", "model.momentum"}
    assert "model.batch_norm" not in texts(draw(found, shares, None)["parallel_coordinates"])


def test_without_plotly_a_study_has_every_figure_but_the_page(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)  # what find_spec sees where it is not installed
    with open_run("sweeps/lrs", system_metrics=False) as run:
        log_summary(searched(9), run)
    drawn = {Path(item.path).name for item in run.client.list_artifacts(run.id, "figures")}
    assert "history.png" in drawn and "study.html" not in drawn
    assert capsys.readouterr().err.count("it needs plotly, `pip install 'lit-mnist[html]'`") == 1
