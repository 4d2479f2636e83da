"""Cheaper garbage collection during training."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Global, since freezing affects the whole process: an inner `unfreeze` would end the outer freeze.
_is_frozen = False


@contextmanager
def gc_freeze() -> Iterator[None]:
    """Collect garbage while entered, but skip all objects that already exist; a nested use changes nothing.

    The imports of torch, Lightning and MLflow leave about a million objects that never become garbage. Without the
    freeze each full collection would visit all of them in the middle of a training step.
    """
    global _is_frozen
    gc.enable()  # the command line switches it off for the imports
    if _is_frozen:
        yield
        return
    # Moves all objects to a generation that is never collected.
    gc.freeze()
    _is_frozen = True
    try:
        yield
    finally:
        gc.unfreeze()
        _is_frozen = False
