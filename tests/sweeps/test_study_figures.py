"""Figures of a study: which ones are drawn, and what they show."""

import io

import matplotlib
import matplotlib.pyplot
import numpy as np
import optuna
import pytest
from matplotlib.text import Text
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from studied import add_trial, made_up_study, make_study

from lit_mnist.sweeps.results.figures import draw_figures, history, learning_curves, pareto_front
from lit_mnist.sweeps.results.heat_map import heat_map, heat_map_parameters
from lit_mnist.sweeps.results.importances import estimate_importances
from lit_mnist.sweeps.results.plotting import address, colour_map, scale_of
from lit_mnist.sweeps.search.optuna_private import set_constraint
from lit_mnist.sweeps.study.summary import read_summary

TWO = (("val/loss", "minimize"), ("parameters", "minimize"))


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def texts(figure) -> list[str]:
    figure.draw_without_rendering()
    return [t.get_text() for t in figure.findobj(lambda artist: isinstance(artist, Text)) if t.get_visible()]


NUMERIC = {
    "model.lr": CategoricalDistribution([0.3, 0.01, 0.1]),
    "model.momentum": CategoricalDistribution([0.9, 0]),
}


def marked_points(figure) -> dict[str, list[tuple[float, float]]]:
    """The coordinates of the trials that are marked in the figure's first axes, by the label of the marks."""
    return {
        str(found.get_label()): [tuple(place) for place in found.get_offsets().tolist()]
        for found in figure.axes[0].collections
        if hasattr(found, "get_offsets") and len(found.get_offsets())
    }


def add(study: optuna.Study, mean, params=None, distributions=None, reported=None, **attrs) -> None:
    """Add a trial, which is complete with this mean of each objective, or pruned if `mean` is None."""
    state = TrialState.PRUNED if mean is None else TrialState.COMPLETE
    study.add_trial(create_trial(
        state=state, values=mean, params=params or {}, distributions=distributions or {}, user_attrs=attrs,
        intermediate_values=dict(enumerate(reported or ())),
    ))  # fmt: skip


def grid_of_choices(seeds: tuple[int, ...] = (0, 1)) -> optuna.Study:
    """A complete grid of three learning rates and two momenta, each with the seeds."""
    study = make_study("grid", seeds=seeds)
    for lr in (0.01, 0.1, 0.3):
        for momentum in (0, 0.9):
            values = [[lr + momentum / 2 + 0.01 * seed] for seed in seeds]
            mean = sum(value for (value,) in values) / len(values)
            add(study, [mean], {"model.lr": lr, "model.momentum": momentum}, NUMERIC, values=values)
    return study


@pytest.mark.parametrize(
    ("count", "objectives", "names"),
    [
        (1, TWO[:1], {"history"}),
        (9, TWO, {"history", "slices", "parallel_coordinates", "heat_map", "pareto_front"}),
        (14, TWO[:1], {"history", "importances", "slices", "parallel_coordinates", "heat_map"}),
    ],
)
def test_only_figures_with_enough_trials_are_drawn(count, objectives, names) -> None:
    figures = draw_figures(read_summary(made_up_study(count, objectives)))
    assert figures.keys() == names
    for figure in figures.values():
        assert texts(figure)


def test_axes_of_parallel_coordinates_have_round_numbers() -> None:
    shown = texts(draw_figures(read_summary(made_up_study(30)))["parallel_coordinates"])
    assert {"0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"} <= set(shown)  # the learning rate
    assert {"0", "0.4", "0.8"} <= set(shown) and not {"0.0251", "0.198", "0.99"} & set(shown)


def test_importances_rank_the_learning_rate_first_and_the_heat_map_shows_it() -> None:
    summary = read_summary(made_up_study(40))
    importances = estimate_importances(summary)
    assert importances is not None and next(iter(importances.shares)) == "model.lr"
    assert importances.shares.keys() == {"model.lr", "model.momentum", "model.batch_norm"}
    assert sum(importances.shares.values()) == pytest.approx(1)
    assert heat_map_parameters(summary, list(importances.shares)) == ("model.lr", "model.momentum")


def test_importances_compare_pruned_trials_at_the_last_step_that_all_reached() -> None:
    """All trials with one optimizer are pruned, so that all complete trials have the other one."""
    study = make_study()
    space = {"optimizer": CategoricalDistribution(["sgd", "adam"]), "lr": FloatDistribution(0, 1)}
    for number in range(24):
        lr, is_pruned = (number * 7 % 24) / 24, number % 2 == 0
        params = {"optimizer": "sgd" if is_pruned else "adam", "lr": lr}
        first = (0.1 if is_pruned else 0.8) + (number * 11 % 24) / 1000  # not in the order of the rates
        add(study, None if is_pruned else [0.9 + lr / 100], params, space, [first] if is_pruned else [first, 0.9])
    importances = estimate_importances(read_summary(study))
    assert importances is not None and next(iter(importances.shares)) == "optimizer"
    assert importances.source == "24 trials (12 pruned) at validation 1, the last that all of them reached"


def test_the_heat_map_marks_every_trial_and_the_given_point() -> None:
    study = made_up_study(30)
    add_trial(study, TrialState.PRUNED, 0.2, 0.3, reported={0: 0.4})
    figure = heat_map(read_summary(study), "model.lr", "model.momentum")
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert {"given point: 11.35 %", "pruned, at its last value", "failed", "95 %"} <= set(texts(figure))
    places = marked_points(figure)
    assert [len(places[label]) for label in ("complete", "failed", "best")] == [24, 1, 1]
    assert places["pruned, at its last value"] == [(0.2, 0.3)]  # the others reported nothing
    assert axes.get_xlim()[0] < 0.01 and axes.get_xlim()[1] > 1.0  # the whole space


def test_the_history_shows_the_best_value_so_far_and_pruned_trials() -> None:
    study = make_study(objectives=TWO[:1])
    for value in (0.5, 0.7, 0.3, 0.4):
        add(study, (value,))
    add(study, None, reported=[2.3, 0.9])
    figure = history(read_summary(study))
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [0.5, 0.5, 0.3, 0.3, 0.3]
    assert marked_points(figure)["pruned, at its last value"] == [(4, 0.9)]
    assert marked_points(figure)["best"] == [(2, 0.3)]


def test_learning_curves_show_every_trial_and_mark_where_it_was_pruned() -> None:
    study = make_study(objectives=TWO[:1])
    add(study, [0.2], reported=[0.9, 0.4, 0.2])
    add(study, None, reported=[2.3])
    add(study, None, reported=[1.9, 1.8])
    figure = learning_curves(read_summary(study))
    assert figure is not None
    assert sorted(len(line.get_xdata()) for line in figure.axes[0].lines) == [1, 2, 3]
    assert sorted(marked_points(figure)["pruned, at its last value"]) == [(1, 2.3), (2, 1.8)]


def test_the_heat_map_of_a_grid_of_numeric_choices_shows_intervals() -> None:
    summary = read_summary(grid_of_choices())
    figure = draw_figures(summary)["heat_map"]
    cells = [text for text in texts(figure) if "±" in text]
    assert len(cells) == 6 and "75.5\n± 6.4 %" in cells
    assert {"means of 2 seeds with their 95 % interval; framed: best", "0.01", "0.3"} <= set(texts(figure))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0.01", "0.1", "0.3"]


def test_numeric_choices_have_a_numeric_scale_and_lists_are_sorted_by_size() -> None:
    study = grid_of_choices()
    scale = scale_of("model.lr", study.get_trials())
    assert (scale.kind, scale.values, scale.low, scale.high) == ("log", (0.01, 0.1, 0.3), 0.01, 0.3)
    assert scale_of("model.momentum", study.get_trials()).kind == "linear"
    sizes = CategoricalDistribution(["[500]", "[100, 50]", "[50]", "[300]"])
    for choice in sizes.choices:
        add(study, [0.1], {"sizes": choice}, {"sizes": sizes})
    assert scale_of("sizes", study.get_trials()).values == ("[50]", "[300]", "[500]", "[100, 50]")


def test_seeds_give_error_bars() -> None:
    figure = history(read_summary(grid_of_choices()))
    bars = figure.axes[0].containers
    assert len(bars) == 6 and all(bar.has_yerr for bar in bars)
    (_, _, (drawn,)) = bars[0]
    assert drawn.get_segments()[0][:, 1].tolist() == pytest.approx([0.015 - 0.06353, 0.015 + 0.06353], abs=1e-4)
    assert not history(read_summary(grid_of_choices(seeds=(0,)))).axes[0].containers


def test_the_better_value_is_darker_in_both_directions() -> None:
    def brightness(upwards: bool, share: float) -> float:
        return sum(colour_map(upwards)(share)[:3])

    assert brightness(True, 1.0) < brightness(True, 0.0)
    assert brightness(False, 0.0) < brightness(False, 1.0)


def test_the_pareto_front_is_labelled_with_trials_and_their_parameters() -> None:
    study = make_study("two", (("val/mse", "minimize"), ("parameters", "minimize")))
    space = {"model.sizes.depth": CategoricalDistribution([1]), "model.sizes.width": FloatDistribution(1, 500)}
    for width, values in ((10, (0.5, 1e4)), (400, (0.1, 4e5)), (90, (0.6, 9e4))):
        params = {"model.sizes.depth": 1, "model.sizes.width": width}
        add(study, values, params, space, point={"model.sizes": [width], "model.lr": 0.1})
    labels = [text for text in texts(pareto_front(read_summary(study))) if text.startswith("trial ")]
    assert labels == ["trial 1: sizes [400]", "trial 0: sizes [10]"]


def test_every_mark_has_the_link_of_its_trial() -> None:
    """Matplotlib writes only the first link of a collection whose marks all look the same."""
    study = make_study(objectives=TWO[:1])
    for number in range(3):
        add(study, [0.1 * number])
    figure, svg = history(read_summary(study)), io.StringIO()
    figure.savefig(svg, format="svg")
    assert all(f'xlink:href="{address(trial)}"' in svg.getvalue() for trial in study.get_trials())


def test_a_parameter_that_never_varied_has_no_importance_and_no_axis() -> None:
    study = make_study()
    for number in range(12):
        add_trial(study, TrialState.COMPLETE, 0.1 + 0.01 * number, 0.05 * number, mean=(0.05 * number,))
    figures = draw_figures(read_summary(study))
    assert {"model.lr", "model.momentum"} <= set(texts(figures["importances"]))
    for figure in figures.values():
        assert "model.batch_norm" not in texts(figure)


def test_drawing_leaves_the_global_state_of_matplotlib_alone() -> None:
    """Optuna's matplotlib functions set the ggplot style for the whole process and leave pyplot figures open."""
    before = dict(matplotlib.rcParams)
    summary = read_summary(made_up_study(9, TWO))
    draw_figures(summary)
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []


def test_a_conditional_parameter_has_a_gap_in_its_line_and_only_its_trials_in_its_panel() -> None:
    study = make_study()
    space = {"optimizer": CategoricalDistribution(["sgd", "adam"]), "lr": FloatDistribution(0, 1)}
    for number in range(9):
        params, own = {"optimizer": "adam", "lr": number / 9}, dict(space)
        if number % 2 == 0:
            params |= {"optimizer": "sgd", "momentum": number / 9}
            own["momentum"] = FloatDistribution(0, 1)
        add(study, [number / 10], params, own)
    figures = draw_figures(read_summary(study))
    drawn = [line.get_ydata() for line in figures["parallel_coordinates"].axes[0].lines]
    assert sum(bool(np.isnan(np.asarray(y, float)).any()) for y in drawn if len(y) == 3) == 4
    (panel,) = (axes for axes in figures["slices"].axes if axes.get_xlabel() == "momentum")
    (marks,) = (found for found in panel.collections if found.get_label() == "complete")
    assert len(marks.get_offsets()) == 5


def test_a_trial_that_breaks_a_constraint_is_marked_and_never_the_best() -> None:
    study = make_study(objectives=TWO[:1])
    for value, excess in ((0.5, -1.0), (0.1, 1.0), (0.4, 0.0)):
        trial = study.ask()
        set_constraint(trial, "parameters", excess)
        study.tell(trial, value)
    figure = history(read_summary(study))
    places = marked_points(figure)
    assert (places["breaks a constraint"], places["best"]) == ([(1, 0.1)], [(2, 0.4)])
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.5, 0.4, 0.4]


def test_cells_without_a_complete_trial_say_so() -> None:
    study = make_study("grid")
    points = [{"model.lr": lr, "model.momentum": m} for lr in (0.01, 0.1) for m in (0, 0.9)]
    add(study, [0.5], points[0], NUMERIC)
    add(study, None, points[1], NUMERIC, reported=[0.4])
    study.add_trial(create_trial(state=TrialState.FAIL, params=points[2], distributions=NUMERIC))
    add(study, [0.7], points[3], NUMERIC)
    shown = texts(heat_map(read_summary(study), "model.lr", "model.momentum"))
    assert {"50.00 %", "40.00 %\npruned", "failed", "70.00 %"} <= set(shown)


@pytest.mark.parametrize(
    ("metric", "values", "scale"),
    [
        ("val/acc", (0.1, 0.97), "logit"),
        ("val/acc", (0.95, 0.97), "linear"),
        ("val/loss", (0.01, 0.5), "log"),
        ("val/loss", (0.1, 0.5), "linear"),
    ],
)
def test_the_axis_of_an_objective_depends_on_its_values(
    metric: str, values: tuple[float, ...], scale: str
) -> None:
    study = make_study(objectives=((metric, "maximize"),))
    for value in values:
        add(study, [value])
    assert history(read_summary(study)).axes[0].get_yscale() == scale
