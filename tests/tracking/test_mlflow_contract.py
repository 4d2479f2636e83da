"""MLflow's internals are as `lit_mnist/tracking/mlflow_private.py` needs them; a failure names what changed."""

import base64
import importlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Metric
from packaging.version import Version
from PIL import Image
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from lit_mnist.tracking import mlflow_private
from lit_mnist.tracking.store import connect, find_store

TRIED = f"MLflow {mlflow.__version__}, while mlflow_private.py was tried with {' to '.join(mlflow_private.TRIED)}"


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("mlflow.utils.validation", "MAX_METRICS_PER_BATCH", mlflow_private.MAX_METRICS_PER_BATCH),
        ("mlflow.utils.validation", "MAX_PARAMS_TAGS_PER_BATCH", mlflow_private.MAX_PARAMS_TAGS_PER_BATCH),
        ("mlflow.utils.validation", "MAX_PARAM_VAL_LENGTH", mlflow_private.MAX_PARAM_LENGTH),
        (mlflow_private.SQL_STORE, "SqlAlchemyStore", None),
        (mlflow_private.CONNECTION_LOGGER, "_logger", None),
    ],
)
def test_a_private_name_of_mlflow_exists_and_has_the_expected_value(module: str, name: str, expected: Any) -> None:
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.fail(f"{module}.{name} does not exist in {TRIED}")
    assert expected in (None, found), f"{module}.{name} is {found}, not {expected}, in {TRIED}"


def test_the_loggers_that_are_silenced_exist() -> None:
    module = importlib.import_module(mlflow_private.CONNECTION_LOGGER)
    assert module._logger.name == mlflow_private.CONNECTION_LOGGER, f"its logger has another name in {TRIED}"


def test_the_ui_knows_the_words_used_in_links_and_saved_views() -> None:
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    code = "".join(path.read_text(encoding="utf-8") for path in scripts.glob("*.js"))
    missing = {word for word in mlflow_private.UI_WORDS if word not in code}
    # The UI of MLflow 3.1 has no modes yet, and ignores both words.
    if missing >= (modes := {"workflowType", "machine_learning"}) and Version(mlflow.__version__) < Version("3.6"):
        missing -= modes
    assert code and not missing, f"the UI does not know {', '.join(missing)} in {TRIED}"


def test_a_saved_view_holds_its_columns_and_order() -> None:
    view = json.loads(
        mlflow_private.saved_view("best", ["metrics.`val/acc`"], "metrics.`val/acc`", False, "a = 'b'")
    )
    assert view["name"] == "best" and isinstance(view["createdAt"], int)
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert state["selectedColumns"] == ["metrics.`val/acc`"] and state["searchFilter"] == "a = 'b'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val/acc`", False)


def test_mlflow_supports_the_same_kinds_of_database_servers() -> None:
    from mlflow.store.db.db_types import DATABASE_ENGINES

    assert {*DATABASE_ENGINES} - {"sqlite"} == {*mlflow_private.DATABASE_SERVERS}, TRIED


def test_a_database_has_the_tables_and_columns_that_are_used(project: Path) -> None:
    uri = connect(find_store()).tracking_uri
    with create_engine(uri, poolclass=NullPool).connect() as connection:
        missing = mlflow_private.missing_columns(connection)
    assert not missing, f"no {', '.join(missing)} in the database of {TRIED}"


def test_after_a_deletion_the_latest_values_are_those_of_the_remaining_points(project: Path) -> None:
    client = connect(find_store())
    kept = [Metric("a", 2.0, 20, 5), Metric("a", 9.0, 10, 5), Metric("a", 1.0, 20, 5), Metric("a", 9.0, 99, 4)]
    stale = [Metric("a", 7.0, 15, 6), Metric("a", float("nan"), 16, 7), Metric("gone", 1.0, 15, 6)]
    others = [Metric("new", 3.0, 100, 6), Metric("test/acc", 4.0, 15, 6), Metric("nan", float("nan"), 15, 5)]
    expected, changed = (client.create_run("0").info.run_id for _ in range(2))
    client.log_batch(expected, metrics=[*kept, *others])
    client.log_batch(changed, metrics=[*kept, *stale, *others])
    for _ in range(2):
        assert mlflow_private.delete_points(client.tracking_uri, changed, 5, 100, ["test/"])
        found = {run_id: client.get_run(run_id).data.metrics for run_id in (expected, changed)}
        assert str(sorted(found[changed].items())) == str(sorted(found[expected].items())), (
            f"another value is the latest in {TRIED}"
        )
        for name in found[expected]:
            history = [str(client.get_metric_history(run_id, name)) for run_id in (expected, changed)]
            assert history[0].replace(expected, "") == history[1].replace(changed, "")


def test_nothing_is_deleted_from_an_unreachable_or_different_database(project: Path) -> None:
    assert not mlflow_private.delete_points("http://127.0.0.1:1", "abc", 5, 100, [])
    assert not mlflow_private.delete_points(f"sqlite:///{project}/empty.db", "abc", 5, 100, [])


def test_deleting_an_artifact_twice_is_no_error(project: Path) -> None:
    client = connect(find_store())
    run_id = client.create_run("0").info.run_id
    for name in ("kept", "gone"):
        client.log_text(run_id, name, f"folder/{name}.txt")
    for _ in range(2):
        mlflow_private.delete_artifact(client, run_id, "folder/gone.txt")
    assert [item.path for item in client.list_artifacts(run_id, "folder")] == ["folder/kept.txt"], TRIED


def test_images_of_a_series_are_named_as_mlflow_names_them(project: Path) -> None:
    client = connect(find_store())
    run_id = client.create_run("0").info.run_id
    client.log_image(run_id, Image.new("L", (4, 4)), key="val images", step=7, timestamp=7)
    theirs = sorted(
        re.sub(r"[0-9a-z]{8}-[0-9a-f-]{27}", "ID", item.path) for item in client.list_artifacts(run_id, "images")
    )
    ours = [
        re.sub(r"[0-9a-z]{8}-[0-9a-f-]{27}", "ID", path) for path in mlflow_private.image_paths("val images", 7)
    ]
    assert theirs == sorted(ours), TRIED
    assert client.get_run(run_id).data.tags[mlflow_private.LOGGED_IMAGES] == "True"
