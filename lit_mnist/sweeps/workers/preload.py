"""The imports of the fork server, which all workers share because they are forks of it; see `spawn`.

Only the fork server imports this module. Importing it changes how the process handles signals, output and exit.
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
"""The handlers of signals before this module changed them, which `worker_main` restores."""

# A terminal or a cluster signals the whole process group. If the fork server died at the first Ctrl-C, the sweep
# would not get the exit codes of workers that are still saving their trials.
for _number in WATCHED:
    signal.signal(_number, signal.SIG_IGN)
# A reader of the command's output, such as a pipe, waits until all processes that have it open have ended, and
# this process may outlive the command.
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

gc.disable()  # imports create a million objects that are not garbage
_sweep = os.getppid()
for _module in ("torch", "lightning.pytorch", "lit_mnist.sweeps.workers.worker"):
    # The command starts this process before it reads the specification, and may already have ended with an error.
    # Check between the imports, since an import of several seconds cannot be interrupted.
    if os.getppid() != _sweep:
        os._exit(0)
    importlib.import_module(_module)
import_mlflow()
import_sql_store()
# The garbage collector writes to every object that it examines, which would copy the memory that workers share.
gc.freeze()
atexit.register(os._exit, 0)  # skips the exit handlers of libraries, which report errors about frozen objects
