"""What a worker starts from; imported by the fork server alone, which each worker is then a copy of.

See `lit_mnist.sweeps.nursery`.
"""

import atexit
import gc
import importlib
import os
import signal

from lit_mnist.signals import WATCHED

HANDLERS = {number: signal.getsignal(number) for number in WATCHED}
"""What signals do to a worker, until it watches for them itself."""

# A terminal or a cluster sends its signals to the whole group: the fork server has to outlive the workers.
for _number in WATCHED:
    signal.signal(_number, signal.SIG_IGN)

gc.disable()
importlib.import_module("lit_mnist.sweeps.worker")
importlib.import_module("lit_mnist.tracking.store").import_mlflow()
importlib.import_module(
    "mlflow.store.tracking.sqlalchemy_store"
)  # else imported with the first look at a database
# What is frozen no worker's collector touches: its memory stays shared.
gc.freeze()
atexit.register(os._exit, 0)  # libraries would complain of what is frozen
