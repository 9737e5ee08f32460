"""What a run was made on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def machine_info() -> dict[str, str]:
    """Return processor, GPU, and versions of what matters for repeating a result."""
    info = {
        "processor": _processor(),
        "cores": str(_cores()),
        "GPU": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
    }
    for package in ("est-ocp", "fairchem-core", "torch", "e3nn", "numpy"):
        try:
            info[package] = version(package)
        except PackageNotFoundError:
            info[package] = "not installed"
    return info


def _cores() -> int:
    """Cores that this process may use; macOS tells only how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
