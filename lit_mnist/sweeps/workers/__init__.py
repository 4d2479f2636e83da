"""Workers: the processes that train a study's trials.

- `runner`: `lit-mnist sweep` from start to end: create, launch, monitor, summarise.
- `launcher`: the interface between the runner and its workers. A new launcher is a file next to `pool`.
- `pool`: the launcher for this machine: starts worker processes, replaces dead ones, and ends them.
- `spawn`: starts one worker process, as a fork of a server that has imported everything (`preload`).
- `parent_watch`: ends a process whose parent has died.
- `worker`: a worker's main loop: lease a trial, train it, lease the next.
- `trial`: one trial: a training for each seed, then the result.
- `distributed`: a trial's training on several devices, in separate processes.
- `reporter`: the Lightning callback that reports a training's validations to its study and prunes it.
- `errors`: tells a trial's own errors from those of the infrastructure.
"""
