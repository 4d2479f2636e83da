"""What the fork server imports, so that every worker, a fork of it, has it already; see `spawn`.

Only the fork server imports this module. Importing it changes the process: how signals, output and exit are
handled.
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

# A terminal or a cluster signals the whole process group. If the fork server died with the first Ctrl-C, the sweep
# would learn no exit code of any worker that is still saving its trial.
for _number in WATCHED:
    signal.signal(_number, signal.SIG_IGN)
# A reader of the command's output, such as a pipe, waits until every process with that output open has ended. This
# one may outlive the command.
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

gc.disable()  # imports create a million objects, none of which is garbage
_sweep = os.getppid()
for _module in ("torch", "lightning.pytorch", "lit_mnist.sweeps.workers.worker"):
    # The command starts this process before it has read the specification: it may be refused within the first
    # second, and an import of several seconds cannot be interrupted.
    if os.getppid() != _sweep:
        os._exit(0)
    importlib.import_module(_module)
import_mlflow()
import_sql_store()
# The garbage collector writes to every object that it examines, which would copy each page that workers share.
gc.freeze()
atexit.register(os._exit, 0)  # skips the libraries' own exit handlers, which complain about frozen objects
