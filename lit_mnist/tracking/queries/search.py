"""Searches of MLflow, page by page.

`MlflowClient.search_experiments` and `search_runs` return at most 1,000 results unless the caller follows the page
tokens. On a shared server, a search without this loop silently misses runs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run
    from mlflow.store.entities import PagedList

T = TypeVar("T", "Experiment", "Run")

PAGE_SIZE = 1000
"""Results in one request; MLflow's own default."""


def search_experiments(client: "MlflowClient", deleted: bool = False) -> "Iterator[Experiment]":
    """Yield every experiment, including deleted ones if `deleted` is True."""
    from mlflow.entities import ViewType

    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    return _pages(lambda size, token: client.search_experiments(view, size, page_token=token), None)


def search_runs(
    client: "MlflowClient",
    query: str = "",
    experiments: Sequence[str] | None = None,
    order_by: Sequence[str] = ("attributes.start_time DESC",),
    limit: int | None = None,
    deleted: bool = False,
) -> "Iterator[Run]":
    """Yield the runs that match `query`; each page is requested only when the caller needs it.

    MLflow's page token is an offset. A caller that changes the results of the query (by setting a status or
    deleting a run) must collect all runs first; otherwise it skips as many runs as it has changed.

    Args:
        client: Client of the store.
        query: MLflow's filter, such as `tags.monitor = 'val/acc'`; empty for all runs.
        experiments: Ids of the experiments to search; None for every experiment.
        order_by: MLflow's order; newest first unless given.
        limit: Maximum number of runs, and of runs that are transferred.
        deleted: Include deleted runs, and those of deleted experiments.

    """
    from mlflow.entities import ViewType

    # MLflow needs the ids of the experiments to search.
    if experiments is None:
        experiments = [found.experiment_id for found in search_experiments(client, deleted)]
    if not experiments:
        return iter(())
    ids, order, view = list(experiments), list(order_by), ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    return _pages(lambda size, token: client.search_runs(ids, query, view, size, order, token), limit)


def _pages(request: "Callable[[int, str | None], PagedList[T]]", limit: int | None) -> Iterator[T]:
    """Yield the results of `request(max_results, page_token)` page by page, at most `limit` of them."""
    # The first page has no token, and the last one returns none.
    token: str | None = None
    count = 0
    while limit is None or count < limit:
        # The last page has only the missing number of results.
        page = request(PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - count), token)
        yield from page
        count += len(page)
        token = page.token
        if not token:
            return
