"""The experiments of all papers are complete, and consistent with the packaged configurations."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from lit_mnist.errors import UsageError
from lit_mnist.papers.report.drawing import bars, curves
from lit_mnist.papers.report.experiment import PAPERS, Experiment, experiments, select
from lit_mnist.papers.yaramsetty import STACKS, TRAINED, final_cost
from lit_mnist.tracking.queries.statistics import summarise
from lit_mnist.training.config_files import config_names
from lit_mnist.training.configuration import LitCLI
from lit_mnist.training.stages import Stage, stage_key

EXPERIMENTS = experiments()
STAGES = sorted(
    {stage for experiment in EXPERIMENTS for stage in experiment.stages.values()}, key=lambda stage: str(stage)
)


def test_thefinal_cost_is_the_mean_of_the_last_hundred_steps() -> None:
    # Points are means over 50 steps; a training of 730 steps ends with a shorter window.
    assert final_cost([(50, 9.0), (600, 7.0), (650, 5.0), (700, 3.0), (730, 1.0)]) == 3.0


def test_the_rows_of_yaramsettys_tables_are_the_papers() -> None:
    """Each row: layers, labels per class, rates, and what is printed: final cost, training and test accuracy."""
    printed = """
        500-200-100 1 1 0 0.00352 51.180 51.167
        500-200-100 5 0.1 0.001 0.37515 66.180 64.7
        300-100 5 0.5 0.00001 0.024674 65.540 65.250
        300-100 1 0.1 0.001 0.027515 51.455 51.30
        100 1 0.5 0.001 0.00365 55.34 55.027
        100 5 1 0.00001 0.000059 69.580 69.833
    """
    for layers, *row in map(str.split, printed.strip().splitlines()):
        sizes = tuple(map(int, layers.split("-")))
        labels, last, others, cost, training, test = map(float, row)
        rates = list(STACKS[sizes])
        at = rates.index((last, others))
        assert TRAINED[sizes][int(labels)][at] == pytest.approx((cost, training / 100))
        assert STACKS[sizes][last, others][int(labels)] == pytest.approx(test / 100, abs=6e-5)


def test_every_stage_parses_and_only_equal_stages_share_a_key() -> None:
    # The flags of the quick preset include those of the full one.
    keys = {stage: stage_key(stage, "quick", 0) for stage in STAGES}
    shared = [stages for key in set(keys.values()) if len(stages := [s for s in STAGES if keys[s] == key]) > 1]
    # The stages of each of these configurations are one training at full length, and the quick preset shortens
    # them in the same way.
    same_training = ({"panagakis/classifier"}, {"zhang/autoencoder"}, {"yaramsetty/layer_1"})
    assert all({stage.config for stage in stages} in same_training for stages in shared)


def test_the_full_preset_is_the_packaged_configuration() -> None:
    plain = {stage.config: stage for stage in STAGES if not stage.flags}
    for name, stage in plain.items():
        ours = LitCLI(stage.arguments("full", 0)).params()
        assert ours == LitCLI(["--config", name]).params(), name


def test_every_configuration_belongs_to_an_experiment() -> None:
    papers = {name for name in config_names() if name.partition("/")[0] in PAPERS}
    assert {stage.config for stage in STAGES} == papers


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.id)
def test_an_experiment_is_complete(experiment: Experiment) -> None:
    assert experiment.paper in PAPERS and experiment.name and experiment.title
    assert any(claim.rule is not None or claim.not_comparable for claim in experiment.claims)
    for claim in experiment.claims:
        if claim.rule is not None and not claim.rule.strict and not claim.not_comparable:
            assert claim.margin or claim.paper is not None, f"{claim.text}: why is the bound {claim.rule.text}?"
    texts = [claim.text for claim in experiment.claims]
    assert len(texts) == len(set(texts))
    assert bool(experiment.cut) == any(_is_shortened(stage) for stage in experiment.stages.values())
    assert 0 < experiment.minutes["quick"] <= min(10, experiment.minutes["full"])
    stages = list(experiment.stages.values())
    for stage in stages:
        assert stage.source is None or stages.index(stage.source) < stages.index(stage)


def test_the_classifier_on_the_code_has_a_seventh_of_the_parameters() -> None:
    models = [LitCLI(["--config", name]).model for name in ("dutta/code_classifier", "dutta/backprop_net")]
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in models]
    assert counts == [32_710, 238_510]


def test_a_name_selects_a_paper_or_an_experiment() -> None:
    zhang = [experiment for experiment in EXPERIMENTS if experiment.paper == "zhang"]
    assert select(["zhang"]) == select(["zhang", "zhang/cnn"]) == zhang
    assert [experiment.id for experiment in select(["dutta/cnn", "zhang/cnn"])] == ["dutta/cnn", "zhang/cnn"]
    with pytest.raises(UsageError, match="did you mean zhang/cnn"):
        select(["zhang/cn"])
    with pytest.raises(UsageError, match="there is no experiment 'mine'; `lit-mnist reproduce` lists them"):
        select(["mine"])


def _is_shortened(stage: Stage) -> bool:
    return bool(stage.quick) or (stage.source is not None and _is_shortened(stage.source))


def test_curves_have_only_the_steps_that_all_seeds_share() -> None:
    figure = curves({"loss": [[(1, 4.0), (2, 2.0), (3, 1.0)], [(1, 2.0), (2, 1.0)]]}, "", "loss")
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 3.0], [2, 1.5]]


def test_curves_of_shares_are_in_percent_with_the_papers_value_marked() -> None:
    (axes,) = curves({"training": [[(50, 0.5), (200, 0.9)]]}, "", "accuracy, %", paper=(200, 0.8)).axes
    assert axes.yaxis.get_major_formatter()(0.8) == "80"
    mark = axes.collections[-1]
    assert mark.get_label() == "paper" and np.asarray(mark.get_offsets()).tolist() == [[200, 0.8]]


def test_bars_are_means_with_shares_in_percent() -> None:
    (axes,) = bars({"a": summarise([0.9, 0.94, 0.95])}, "", "test accuracy, %", {"paper": 0.98}).axes
    assert axes.patches[0].get_height() == pytest.approx(0.93)
    assert axes.yaxis.get_major_formatter()(0.98) == "98"


def test_the_papers_values_are_marked_at_their_own_bars() -> None:
    numbers = {"a": summarise([0.9]), "b": summarise([0.8]), "c": summarise([0.7])}
    (axes,) = bars(numbers, "", "test accuracy, %", paper={"c": 0.75, "a": 0.95}).axes
    marks = axes.collections[-1]
    assert isinstance(marks, LineCollection)
    lines = [segment.tolist() for segment in marks.get_segments() if segment.size]
    assert [(round(left[0] + right[0], 9) / 2, left[1]) for left, right in lines] == [(0, 0.95), (2, 0.75)]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["paper"]
