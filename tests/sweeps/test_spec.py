"""A specification is checked before any training, and every error is one line that names the key."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from lit_mnist.errors import UsageError, UserError
from lit_mnist.sweeps.search.spec import Spec, load_spec, parse_spec, trial_stage
from lit_mnist.sweeps.search.spec_file import SpecFile
from lit_mnist.sweeps.search.strict_model import StrictModel
from lit_mnist.sweeps.search.validation import check

SHIPPED = sorted(Path(__file__).parents[2].joinpath("sweeps").glob("*.yaml"))
SPACE = {
    "model.lr": {"low": 1e-4, "high": 0.1, "log": True},
    "model.optimizer": {"choices": ["sgd", "adam"]},
    "model.momentum": {"low": 0, "high": 0.9, "when": {"model.optimizer": "sgd"}},
}


def spec_yaml(**changes: Any) -> str:
    """YAML of a sweep of a dense network with these fields; None removes a field."""
    fields: dict[str, Any] = {
        "config": "dutta/backprop_net",
        "flags": {"data": "MiniMNISTDataModule"},
        "metric": "val/acc",
        "direction": "maximize",
        "trials": 5,
        "space": SPACE,
        **changes,
    }
    return yaml.safe_dump({name: value for name, value in fields.items() if value is not None}, sort_keys=False)


def on_mini(spec: Spec) -> Spec:
    """The same search with the bundled images, and without sizes that need more of them."""
    fields = yaml.safe_load(spec.text)
    small = {
        "data": "MiniMNISTDataModule",
        "data.train_size": None,
        "data.train_per_class": 20,
        "data.val_size": 0.1,
    }
    flags = {name: value for name, value in small.items() if name not in spec.space.names}
    fields["flags"] = {**fields.get("flags", {}), **flags}
    if spec.source is not None:
        fields["source"]["flags"] = {**fields["source"].get("flags", {}), **small}
    return parse_spec(yaml.safe_dump(fields, sort_keys=False), spec.name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_probe_point_of_a_shipped_specification_can_be_built(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem and f"lit-mnist sweep sweeps/{path.name}" in spec.text
    assert len(check(on_mini(spec))) == len(spec.space.probe_points()) > 1


@pytest.mark.full_data
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_specification_can_be_built_on_its_own_data(path: Path) -> None:
    spec = load_spec(path)
    assert len(check(spec)) == len(spec.space.probe_points())


WRONG_SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"trails": 3}, "trails: no such key; did you mean trials?"),
    "wrong type": ({"trials": "many"}, "trials: expected an integer, not 'many'"),
    "no trials": ({"trials": None}, "trials is missing"),
    "too few trials": ({"trials": 0}, "trials: 0 must be at least 1"),
    "more seeds than fit into memory": ({"repeats": 2**31}, "repeats: 2147483648 must be at most 1000"),
    "negative hours": ({"hours": -1}, "hours: -1 must be above 0"),
    "test metric": ({"metric": "test/acc"}, "metric: test/acc: a sweep never reads test images"),
    "no direction": ({"direction": None}, "direction is missing: maximize or minimize val/acc"),
    "direction": ({"direction": "maximise"}, "there is no maximise; did you mean maximize?"),
    "metric and objectives": ({"objectives": [{"metric": "val/acc", "direction": "maximize"}]}, "take one"),
    "sampler": ({"sampler": "tpee"}, "sampler: there is no tpee; did you mean tpe?"),
    "sampler's option": (
        {"sampler": {"name": "tpe", "n_startup_trails": 3}},
        "sampler.n_startup_trails: no such key; did you mean n_startup_trials?",
    ),
    "sampler's value": (
        {"sampler": {"name": "qmc", "qmc_type": "sobel"}},
        "sampler.qmc_type: there is no sobel; did you mean sobol?",
    ),
    "pruner": ({"pruner": "medium"}, "there is no medium; did you mean median?"),
    "pruner's metric": ({"pruner": "median", "metric": "seconds"}, "needs a metric of every validation"),
    "pruner of two objectives": (
        {
            "pruner": "median",
            "metric": None,
            "direction": None,
            "objectives": [{"metric": m, "direction": "minimize"} for m in ("val/loss", "seconds")],
        },
        "pruner: median needs a single objective, and there are 2",
    ),
    "goals and objectives": (
        {"metric": None, "direction": None, "goals": [], "objectives": []}, "goals and objectives are the same"
    ),
    "key of an objective": (
        {"metric": None, "direction": None, "objectives": [
            {"metric": "val/acc", "direction": "maximize"}, {"metric": "val/loss", "dirction": "minimize"},
        ]},
        "objectives.2.dirction: no such key; did you mean direction?",
    ),
    "no objective's direction": (
        {"metric": None, "direction": None, "objectives": [{"metric": "val/acc"}]},
        "objectives.1.direction is missing",
    ),
    "no metric": ({"metric": None, "direction": None}, "metric is missing"),
    "a sampler without name": ({"sampler": {"seed": 1}}, "sampler.name is missing"),
    "sampler's option below its least": (
        {"sampler": {"name": "tpe", "n_startup_trials": -1}}, "sampler.n_startup_trials: -1 must be at least 0"
    ),
    "a boolean for a number": ({"hours": True}, "hours: expected a number, not True"),
    "a text for an interval's end": (
        {"space": {"model.lr": {"low": "0.1", "high": 1}}}, "space: model.lr.low: expected a number, not '0.1'"
    ),
    "an interval without end": ({"space": {"model.lr": {"low": 0.1}}}, "space: model.lr.high is missing"),
    "depth that is no integer": (
        {"space": {"model.hidden_sizes": {"depth": {"low": 1, "high": 2.5}, "width": {"choices": [4]}}}},
        "space: model.hidden_sizes.depth: expected an integer, not 2.5",
    ),
    "width of 0": (
        {"space": {"model.hidden_sizes": {"depth": {"low": 1, "high": 2}, "width": {"low": 0, "high": 4}}}},
        "space: model.hidden_sizes: width: 0 must be at least 1",
    ),
    "a condition within sizes": (
        {"space": {"model.hidden_sizes": {
            "depth": {"choices": [1], "when": {"model.lr": 1}}, "width": {"choices": [4]},
        }}},
        "space: model.hidden_sizes: depth: when and also belong beside depth and width",
    ),
    "factor": (
        {"space": {"data.batch_size": {"choices": [16], "also": {"trainer.max_epochs": "twice"}}}},
        "space: data.batch_size.also: expected a factor for trainer.max_epochs, not 'twice'",
    ),
    "factor for a text": (
        {"space": {"model.optimizer": {"choices": ["sgd"], "also": {"trainer.max_epochs": 2}}}},
        "space: model.optimizer: also goes with numbers alone",
    ),
    "repeats and seeds": ({"repeats": 2, "seeds": [1, 2]}, "take one"),
    "equal seeds": ({"seeds": [1, 1]}, "must be different seeds"),
    "grid of an interval": ({"sampler": "grid"}, "space: model.lr: a grid needs step or points"),
    "points for another sampler": (
        {"space": {"model.lr": {"low": 0.1, "high": 1, "points": 3}}},
        "space: model.lr: points has no effect on the sampler tpe",
    ),
    "more than the grid": (
        {"sampler": "grid", "space": {"model.optimizer": {"choices": ["sgd", "adam"]}}},
        "trials: 5, but the grid has 2 points",
    ),
    "cmaes on choices": (
        {"sampler": "cmaes", "space": {"model.optimizer": {"choices": ["sgd", "adam"]}}},
        "cmaes needs two or more intervals, and space has 0",
    ),
    "cmaes on conditional intervals": (
        {"sampler": "cmaes"},
        "cmaes needs intervals that always apply, unlike model.momentum",
    ),
    "in flags and space": ({"flags": {"model.lr": 0.1}}, "model.lr stands both in flags and in space"),
    "tied to a flag": (
        {"flags": {"trainer.max_epochs": 2},
         "space": {"data.batch_size": {"choices": [16, 32], "also": {"trainer.max_epochs": 1}}}},
        "trainer.max_epochs stands both in flags and in space",
    ),
    "a single value": ({"space": {"model.lr": 0.1}}, "put a single value among the flags"),
    "empty space": ({"space": {}}, "space: there is nothing to vary"),
    "interval": ({"space": {"model.lr": {"low": 1, "high": 0.1}}}, "low 1 must be below high 0.1"),
    "logarithm of 0": ({"space": {"model.lr": {"low": 0, "high": 1, "log": True}}}, "low 0 must be above 0"),
    "step": ({"space": {"data.noise": {"low": 0, "high": 1, "step": 0.3}}}, "miss high 1; the last is 0.9"),
    "step of 0": ({"space": {"data.noise": {"low": 0, "high": 1, "step": 0}}}, "step 0 must be above 0"),
    "key of an interval": (
        {"space": {"model.lr": {"low": 0.1, "hihg": 1}}}, "space: model.lr.hihg: no such key; did you mean high?"
    ),
    "twice": ({"space": {"model.lr": {"choices": [0.1, 0.1]}}}, "space: model.lr.choices: 0.1 is given twice"),
    "no group": ({"space": {"lr": {"low": 0.1, "high": 1}}}, "did you mean model.lr?"),
    "test noise": ({"space": {"data.test_noise": {"low": 0, "high": 1}}}, "there is data.val_noise"),
    "test noise, fixed": ({"flags": {"data.test_noise": 0.1}}, "a sweep never reads test images"),
    "seed": ({"flags": {"seed_everything": 1}}, "seeds and repeats choose the seeds"),
    "rule": (
        {"space": {"model.hidden_sizes": {"depth": {"choices": [2]}, "width": {"choices": [4]}, "rule": "half"}}},
        "there is no half",
    ),
    "condition's name": (
        {"space": {**SPACE, "data.noise": {"low": 0, "high": 1, "when": {"model.optimiser": "sgd"}}}},
        "there is no model.optimiser; did you mean model.optimizer?",
    ),
    "condition's value": (
        {"space": {**SPACE, "data.noise": {"low": 0, "high": 1, "when": {"model.optimizer": "sdg"}}}},
        'model.optimizer: "sdg" is none of its choices',
    ),
    "first point": ({"points": [{"model.lr": 0.05, "model.optimizer": "sgd"}]}, "has no model.momentum"),
    "first point's value": ({"points": [{"model.lr": 5, "model.optimizer": "adam"}]}, "5 must lie in [0.0001"),
    "first point with what does not apply": (
        {"points": [{"model.lr": 0.05, "model.optimizer": "adam", "model.momentum": 0.5}]},
        "model.momentum does not apply",
    ),
    "source's flag": (
        {"source": {"config": "zhang/autoencoder"}, "flags": {"model.encoder_checkpoint": "x"}},
        "model.encoder_checkpoint is given by source",
    ),
    "layers": ({"source": {"config": "yaramsetty/layer_{depth}"}}, "goes with layers: true"),
}  # fmt: skip
"""Fields of a specification that is refused when it is read, and a part of the error."""
WRONG_WHEN_BUILT: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt in space": (
        {"space": {"model.lrr": {"low": 0.1, "high": 1}}},
        "--model.lrr: MLP has no lrr; did you mean lr? (at model.lrr 1.0)",
    ),
    "misspelt in flags": ({"flags": {"data.batchsize": 3}}, "did you mean batch_size?"),
    "config": ({"config": "dutta/backprop"}, "did you mean dutta/backprop_net?"),
    "value": ({"space": {"model.dropout": {"low": 0.5, "high": 1}}}, "--model.dropout 1.0 must lie in [0, 1)"),
    "momentum for adam": (
        {"space": {"model.momentum": {"low": 0, "high": 0.9}}},
        "has no effect on adam",
    ),
    "metric of another model": (
        {"config": "dutta/autoencoder", "space": {"model.lr": {"low": 0.1, "high": 1}}},
        "DenseAutoencoder ends with none of that name; there are val/loss, val/mse, best/val/loss",
    ),
    "constraint": ({"constraints": [{"metric": "params", "at_most": 9}]}, "did you mean parameters?"),
    "another encoder than the source's": (
        {
            "config": "zhang/feature_classifier",
            "source": {"config": "zhang/autoencoder"},
            "space": {"model.encoder_args.hidden_sizes": {"choices": [[98], [49]]}},
        },
        "model.encoder_args.hidden_sizes [49])",
    ),
    "no layer of that depth": (
        {
            "config": "yaramsetty/finetune",
            "source": {
                "config": "yaramsetty/layer_{depth}",
                "layers": True,
                "flags": {"data": "MiniMNISTDataModule", "data.train_per_class": 60},
            },
            "space": {"model.hidden_sizes": {"choices": [[8], [8, 8, 8, 8]]}},
        },
        "yaramsetty/layer_4: no such file or packaged configuration; did you mean yaramsetty/layer_",
    ),
}
"""Fields of a specification that is refused when its model and data are built, and a part of the error."""


@pytest.mark.parametrize("what", WRONG_SPECS)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(what: str) -> None:
    changes, message = WRONG_SPECS[what]
    with pytest.raises(UserError) as error:
        parse_spec(spec_yaml(**changes), "x")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("what", WRONG_WHEN_BUILT)
def test_an_error_of_model_or_data_is_reported_with_the_point(what: str) -> None:
    changes, message = WRONG_WHEN_BUILT[what]
    with pytest.raises(UserError) as error:
        check(parse_spec(spec_yaml(**changes), "x"))
    assert message in str(error.value) and "\n" not in str(error.value) and " (at " in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\na: 2\n", "line 2: a is given twice, first in line 1"),
        (b"a: [1\n", "line 2:"),
        (b"", "it is empty: a spec needs config"),
        (b"# nothing but a comment\n", "it is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file"),
        (b"PK\x03\x04\x00\x00", "special characters are not allowed"),
        (b"? [a, b]\n: 1\n", "unhashable key"),
        (b"- 1\n", "the spec: expected names with values, not [1]"),
        (b"just words\n", "the spec: expected names with values, not 'just words'"),
        (b"config: zhang/cnn\nspace: [1]\n", "space: expected names with values, not [1]"),
        (b"config: zhang/cnn\nspace: {model.lr: [1]}\n", "space: model.lr: [1] is no range"),
        (b"config: zhang/cnn\nspace: {}\nflags: [1]\n", "flags: expected names with values, not [1]"),
        (b"config: zhang/cnn\nspace: {}\nsource: [1]\n", "source: expected names with values, not [1]"),
        (b"config: zhang/cnn\nspace: {}\nsampler: [1]\n", "sampler: expected names with values, not [1]"),
        (b"config: zhang/cnn\nspace: {}\npoints: {a: 1}\n", "points: expected a list, not {'a': 1}"),
    ],
)
def test_a_file_that_is_no_specification_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (path := tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UsageError) as error:
        load_spec(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    with pytest.raises(UsageError, match="sweeps: cannot be read: Is a directory"):
        load_spec(tmp_path / "sweeps")
    (unreadable := tmp_path / "x.yaml").write_text(spec_yaml())
    unreadable.chmod(0)
    if not os.access(unreadable, os.R_OK):  # root may read everything
        with pytest.raises(UsageError, match=r"x\.yaml: cannot be read: Permission denied"):
            load_spec(unreadable)


STORED = json.loads((Path(__file__).parents[1] / "stored" / "specifications.json").read_text())


@pytest.mark.parametrize("name", STORED)
def test_a_specification_is_stored_as_version_0_1_did(name: str) -> None:
    """Studies of that version can be continued only if what they have stored equals the present specification."""
    spec = parse_spec(STORED[name]["text"], name)
    assert json.loads(json.dumps(spec.stored())) == STORED[name]["stored"]
    renamed = parse_spec(STORED[name]["text"].replace("goals:", "objectives:"), name)
    assert renamed.stored() == spec.stored()


def test_a_stored_specification_can_be_read_again() -> None:
    spec = parse_spec(spec_yaml(repeats=3, seed=4, points=[{"model.lr": 0.05, "model.optimizer": "adam"}]), "x")
    assert spec.seeds == (4, 5, 6) and spec.seed == 4
    again = replace(parse_spec(spec.text, "x"), trials=50)
    assert again.stored() == spec.stored() and again.trials == 50
    other = parse_spec(spec_yaml(space={**SPACE, "model.lr": {"low": 1e-4, "high": 0.2, "log": True}}), "x")
    assert other.stored()["space"] != spec.stored()["space"]


def test_numbers_like_1e_4_are_read_as_on_the_command_line() -> None:
    spec = parse_spec("config: zhang/cnn\nmetric: val/acc\ndirection: maximize\ntrials: 2\nspace:\n"
                      "  model.lr: {low: 1e-4, high: 1e-1, log: true}\n", "x")  # fmt: skip
    assert spec.space.probe_points() == [{"model.lr": 0.1}, {"model.lr": 0.0001}]


def test_a_trial_has_a_source_stage_for_each_of_its_hidden_layers() -> None:
    spec = parse_spec(
        spec_yaml(
            config="yaramsetty/finetune",
            flags={},
            source={"config": "yaramsetty/layer_{depth}", "layers": True, "take": "last",
                    "share": {"model.lr": "model.weight_decay"}},
            space={"model.hidden_sizes": {"choices": [[8], [8, 4]]}, "model.lr": {"choices": [1, 2]}},
        ),
        "x",
    )  # fmt: skip
    stage = trial_stage(spec, {"model.hidden_sizes": [8, 4], "model.lr": 2})
    assert stage.arguments("full", 7) == [
        *("--config", "yaramsetty/finetune", "--model.hidden_sizes", "[8, 4]"),
        *("--model.lr", "2", "--seed_everything", "7"),
    ]
    below = stage.source
    assert below and below.source and below.source.source is None
    assert stage.source_flag == "--model.encoder_checkpoint" and stage.take == "last"
    assert below.config == "yaramsetty/layer_2" and below.source_flag == "--model.below_checkpoint"
    assert below.flags == ("--model.hidden_sizes", "[8, 4]", "--model.weight_decay", "2")
    assert below.source.flags == ("--model.hidden_sizes", "[8]", "--model.weight_decay", "2")


PAGE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.partition(":")[0])
def test_an_example_of_the_documentation_is_a_valid_specification(example: str) -> None:
    fields = {**yaml.safe_load(EXAMPLES[0]), **yaml.safe_load(example)}
    if "objectives" in fields:
        fields = {name: value for name, value in fields.items() if name not in ("metric", "direction", "pruner")}
    parse_spec(yaml.safe_dump(fields, sort_keys=False), "x")


def test_the_documentation_mentions_every_key() -> None:
    assert len(EXAMPLES) > 8
    keys = {field.alias or name for model in _models(SpecFile) for name, field in model.model_fields.items()}
    assert {"space", "sampler", "low", "int", "depth", "n_startup_trials", "at_most", "share"} <= keys
    missing = {key for key in keys - {"goals"} if not re.search(rf"\b{key}\b", PAGE)}
    assert not missing


def _models(model: type[StrictModel]) -> set[type[StrictModel]]:
    """The model and, recursively, the models of its fields."""
    found, pending = {model}, [field.annotation for field in model.model_fields.values()]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, StrictModel) and annotation not in found:
            found |= _models(annotation)
        pending += get_args(annotation)
    return found
