"""Settings of PyTorch under which CUDA graphs are captured."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

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
def capturing(device: torch.device, pool: Any) -> Iterator[None]:
    """On a device, with its stream and random generator left as they were.

    Warm-ups then cost no random numbers, and a resumed training, which captures at other steps,
    draws what it would have drawn. A capture that fails leaves PyTorch on the stream of the
    capture, its generator expecting further ones, its allocator filling the pool: all is undone.

    Parameters
    ----------
    device : torch.device
    pool : tuple
        That captures use.
    """
    with (
        torch.cuda.device(device),
        torch.random.fork_rng(devices=[device]),
        torch.cuda.stream(torch.cuda.current_stream(device)),
    ):
        try:
            yield
        except BaseException:
            index = torch.cuda.current_device()
            # Warm-ups on the other stream may still write to what is now let go of.
            torch.cuda.synchronize()
            # Refused where the capture got far enough to do so itself.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(index, pool)
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())
            raise
