"""Everything that uses a private name of Lightning (or of torch), in one place.

An upgrade of Lightning may rename or remove any of these names without notice.
tests/training/test_lightning_contract.py lists them and checks that each one still exists; no other package may
use them.

Files:
    fast_step.py   the faster training step, and the versions of Lightning it was compared with
    ranks.py       several processes that train one model: rendezvous, signals, hanging peers
    signals.py     keeps a Trainer from installing signal handlers; stops an evaluation at a signal
    state.py       parts of a Trainer's state that Lightning restores wrongly or not at all
"""
