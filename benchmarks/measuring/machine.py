"""The machine that figures come from, and its own limits."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from measuring.timing import synchronise, use_precision


def card_name(device: str) -> str:
    """Name of the GPU, or ``CPU``."""
    return torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "CPU"


def slug(card: str) -> str:
    """Name of a card as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")


def installed(package: str) -> str:
    """Version of a package, or ``none``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def fairchem_version() -> str:
    """Version of fairchem-core, which may lie on the path without being installed."""
    found = installed("fairchem-core")
    return getattr(sys.modules.get("fairchem.core"), "__version__", found)


def commit() -> str:
    """Commit of this checkout, ``+`` if files differ from it, or ``unknown``."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except OSError:
        return "unknown"


def facts(device: str) -> dict[str, str]:
    """What every row says about its machine; the commit is the caller's."""
    return {
        "card": card_name(device),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "fairchem": fairchem_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _fastest(function: Callable[[], object], device: str, repeats: int = 8) -> float:
    """Fewest seconds of a call."""
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


def roofs(precision: str, device: str) -> dict[str, float]:
    """Highest rates that a large matrix product and a large copy reach here.

    Returns
    -------
    dict
        ``roof_tflop_s``, two operations a multiply-add, and ``roof_gb_s``, bytes read and written.
    """
    cuda = torch.device(device).type == "cuda"
    use_precision(precision)
    size = 8192 if cuda else 256
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    product = _fastest(lambda: left @ right, device)
    source = torch.zeros(2**28 if cuda else 2**20, device=device)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device)
    return {
        "roof_tflop_s": round(2 * size**3 / product / 1e12, 4),
        "roof_gb_s": round(2 * source.nbytes / copy / 1e9, 3),
    }
