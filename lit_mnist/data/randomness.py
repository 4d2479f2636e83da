"""Random numbers as a function of a key such as (seed, epoch, step), never of what was drawn before.

Whatever is drawn this way needs no generator state in a checkpoint: the key says it all.
"""

import hashlib

import torch


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on `key` alone, the same on every machine and Python version."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` in the state that `key` names."""
    return torch.Generator(device).manual_seed(keyed_seed(*key))
