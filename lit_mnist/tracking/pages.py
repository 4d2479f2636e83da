"""Full addresses of pages in the MLflow UI, for printing; `mlflow_private` has relative ones, for descriptions."""

from urllib.parse import urlsplit, urlunsplit

from lit_mnist.tracking.mlflow_private import ui_path
from lit_mnist.tracking.store import Store

HOST, PORT = "127.0.0.1", 5000
"""Where `lit-mnist ui` serves the UI by default."""
HINT = "`lit-mnist ui` serves it"


def ui_address(store: Store, port: int = PORT) -> str:
    """Address of the UI of `store`, without user and password, and with a slash at its end.

    A tracking server has its own UI; for a database it is the address of `lit-mnist ui`.
    """
    # The store's URI may contain user and password, which must not be printed.
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
    """A line to print with the address of a run's page, and how to serve it."""
    # On its own line, the address fits on a terminal of 110 columns.
    return f"page: {run_page(store, experiment, run)}" + ("" if has_own_ui(store) else f"\n      {HINT}")
