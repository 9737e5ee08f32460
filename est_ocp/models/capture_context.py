"""Settings of PyTorch under which CUDA graphs are captured."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch


def uncached_autocast(kind: str = "cuda") -> torch.autocast:
    """Autocast as it is now, but each weight is cast where it is used.

    Autocast would keep half-precision weights of one pass for the next, whose memory a graph then
    reads without their being computed anew.
    """
    return torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    )


def precision() -> tuple[Hashable, ...]:
    """Settings that decide on the kernels of a pass."""
    autocast = torch.is_autocast_enabled("cuda")
    return (
        torch.get_autocast_dtype("cuda") if autocast else None,
        torch.backends.cuda.matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_inference_mode_enabled(),
    )


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Raise RuntimeError where the host waits for a GPU.

    A capture would fail there too, but leaves PyTorch's allocator and generator in its midst.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # That this is a prototype, which may overlook some waits.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the random generators as they were, also after a capture that failed.

    Warm-ups then cost no random numbers, and a resumed training, which captures at other steps,
    draws what it would have drawn.
    """
    with torch.random.fork_rng(devices=[device]):
        try:
            yield
        except BaseException:
            # A capture that ends early leaves the generator expecting further ones.
            index = torch.cuda.current_device() if device.index is None else device.index
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())
            raise
