"""Random numbers as a function of a key such as (seed, epoch, step), independent of what was drawn before.

No generator state has to be saved in a checkpoint, since the key alone determines the numbers.
"""

import hashlib

import torch


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed that depends only on `key`, the same on every machine and in every Python version."""
    # Not Python's `hash`, which differs from process to process (PYTHONHASHSEED).
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded with `keyed_seed(*key)`."""
    return torch.Generator(device).manual_seed(keyed_seed(*key))
