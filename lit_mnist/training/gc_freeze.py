"""Python's garbage collector and the million objects that imports leave behind."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_settled = False


@contextmanager
def gc_freeze() -> Iterator[None]:
    """Collect garbage, but do not look for it among what start-up has made; nested, it changes nothing."""
    global _settled
    gc.enable()
    if _settled:
        yield
        return
    gc.freeze()
    _settled = True
    try:
        yield
    finally:
        gc.unfreeze()
        _settled = False
