"""Addresses of pages in the MLflow UI: whole ones to print, relative ones (`mlflow_private`) for descriptions."""

from urllib.parse import urlsplit, urlunsplit

from lit_mnist.tracking.mlflow_private import ui_path
from lit_mnist.tracking.store import Store

HOST, PORT = "127.0.0.1", 5000
"""Where `lit-mnist ui` serves the UI by default."""
HINT = "`lit-mnist ui` serves it"


def ui_address(store: Store, port: int = PORT) -> str:
    """Address of the UI of `store`, without user and password, and with a slash at its end.

    A tracking server has its own; that of a database is where `lit-mnist ui` serves it.
    """
    # A store's URI may hold user and password, which no printed address may.
    url = urlsplit(store.uri)
    if not has_own_ui(store):
        return f"http://{HOST}:{port}/"
    return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], f"{url.path.rstrip('/')}/", "", ""))


def has_own_ui(store: Store) -> bool:
    """True if the store is a tracking server."""
    return urlsplit(store.uri).scheme in ("http", "https")


def run_page(store: Store, experiment: str, run: str, port: int = PORT) -> str:
    """Address of a run's page; `experiment` and `run` are ids."""
    return ui_address(store, port) + ui_path(experiment, run)


def show_page(store: Store, experiment: str, run: str) -> str:
    """A line to print that says where a run's page is, and how to get it served."""
    # On a line of its own, the address is whole on a terminal of 110 columns, and broken by its last word on 100.
    return f"page: {run_page(store, experiment, run)}" + ("" if has_own_ui(store) else f"\n      {HINT}")
