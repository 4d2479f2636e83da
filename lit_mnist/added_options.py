"""Options of models and data modules that were added after runs had been stored."""

from collections.abc import Mapping

ADDED_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "model": {"lr_decay": 0.0},
    "data": {"fixed_noise": False, "shift": 0, "flip": False},
}
"""Each added option, with the value that has no effect.

A stored configuration without the option is treated as if it had this value. Otherwise each added option would
count as a configuration change at every resume, appear as a difference between old and new runs in `compare`, and
invalidate every stage and result that `reproduce` keeps. Add each new field of a model or a data module here.
"""
