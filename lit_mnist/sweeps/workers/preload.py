"""What a worker starts from; imported by the fork server alone, which each worker is then a copy of.

See `lit_mnist.sweeps.workers.spawn`.
"""

import atexit
import gc
import importlib
import os
import signal

from lit_mnist.signals import WATCHED
from lit_mnist.tracking.mlflow_private import import_sql_store
from lit_mnist.tracking.store import import_mlflow

HANDLERS = {number: signal.getsignal(number) for number in WATCHED}
"""What signals do to a worker, until it watches for them itself."""

# A terminal or a cluster sends its signals to the whole group: the fork server has to outlive the workers.
for _number in WATCHED:
    signal.signal(_number, signal.SIG_IGN)
# Whoever waits for the end of the command's output does not wait for this process.
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

gc.disable()
_sweep = os.getppid()
for _module in ("torch", "lightning.pytorch", "lit_mnist.sweeps.workers.worker"):
    if os.getppid() != _sweep:  # it was refused, or had nothing left to do
        os._exit(0)
    importlib.import_module(_module)
import_mlflow()
import_sql_store()
# What is frozen no worker's collector touches: its memory stays shared.
gc.freeze()
atexit.register(os._exit, 0)  # libraries would complain of what is frozen
