"""Workers: the processes that train a study's trials.

- `runner`: `lit-mnist sweep` from start to end: create, launch, monitor, summarise.
- `launcher`: what the runner needs of whatever runs its workers. A new launcher is a file beside `pool`.
- `pool`: the launcher for this machine: worker processes that are started, replaced when they die, and ended.
- `spawn`: starts one worker process, as a fork of a server that has imported everything (`preload`).
- `worker`: what a worker does: lease a trial, train it, lease the next.
- `trial`: one trial: a training for each seed, then the result.
- `distributed`: a trial's training on several devices, in processes of its own.
- `reporter`: the Lightning callback that reports a training's validations to its study and prunes it.
- `errors`: tells a trial's own errors from those of the infrastructure.
"""
