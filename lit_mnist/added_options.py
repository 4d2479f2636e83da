"""Options of models and data modules that came after runs had been stored."""

from collections.abc import Mapping

ADDED_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "model": {"lr_decay": 0.0},
    "data": {"fixed_noise": False, "shift": 0, "flip": False},
}
"""Each new option, with the value that has no effect.

A stored configuration that lacks one is the same as today's with that value. Otherwise each new option would make
every resume a change of the configuration, set old runs apart from new ones in `compare`, and invalidate every
stage and result that `reproduce` keeps. A new field of a model or a data module is added here.
"""
