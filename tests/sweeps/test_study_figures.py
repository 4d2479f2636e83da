"""Figures of a study: which ones are drawn, and what they show."""

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import optuna
import pytest
from matplotlib.text import Text
from optuna.trial import TrialState
from studied import add_trial, make_study, searched

from lit_mnist.sweeps.results.figures import history
from lit_mnist.sweeps.results.heat_map import heat_map
from lit_mnist.sweeps.results.parent_run import (
    draw_figures,
    estimate_importances,
    heat_map_parameters,
    log_summary,
)
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
def test_only_figures_with_enough_trials_are_drawn(count, objectives, names) -> None:
    summary = read_summary(searched(count, objectives))
    importances = estimate_importances(summary)
    figures = draw_figures(summary, importances, heat_map_parameters(summary, importances))
    assert figures.keys() == names
    for figure in figures.values():
        assert texts(figure)


def test_importances_find_the_parameter_that_matters_and_the_map_shows_rate_and_momentum() -> None:
    summary = read_summary(searched(40))
    importances = estimate_importances(summary)
    assert max(importances, key=importances.__getitem__) == "model.lr"
    assert importances.keys() == {"model.lr", "model.momentum", "model.batch_norm"}
    assert sum(importances.values()) == pytest.approx(1)
    assert heat_map_parameters(summary, importances) == ("model.lr", "model.momentum")


def test_the_heat_map_marks_every_trial_and_the_given_point() -> None:
    summary = read_summary(searched(30))
    figure = heat_map(summary, "model.lr", "model.momentum")
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


def test_a_parameter_that_never_varied_has_no_importance_and_no_axis() -> None:
    study = make_study()
    for number in range(5):
        add_trial(study, TrialState.COMPLETE, 0.1 + 0.04 * number, 0.1 * number, mean=(0.1 * number,))
    summary = read_summary(study)
    importances = estimate_importances(summary)
    assert importances.keys() == {"model.lr", "model.momentum"}
    assert "model.batch_norm" not in texts(draw_figures(summary, importances, None)["parallel_coordinates"])


def test_without_plotly_only_the_page_is_missing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)  # what find_spec sees where it is not installed
    with open_run("sweeps/lrs", system_metrics=False) as run:
        log_summary(searched(9), run)
    drawn = {Path(item.path).name for item in run.client.list_artifacts(run.id, "figures")}
    assert "history.png" in drawn and "study.html" not in drawn
    assert capsys.readouterr().err.count("it needs plotly, `pip install 'lit-mnist[html]'`") == 1


def test_drawing_leaves_the_global_state_of_matplotlib_alone() -> None:
    """Optuna's matplotlib functions set the ggplot style for the whole process and leave pyplot figures open."""
    before = dict(matplotlib.rcParams)
    summary = read_summary(searched(9, TWO))
    importances = estimate_importances(summary)
    draw_figures(summary, importances, heat_map_parameters(summary, importances))
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []
