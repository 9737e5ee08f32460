"""The cache of point sets: many processes, damage, and places that cannot be written."""

from __future__ import annotations

import multiprocessing
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from est_ocp.sphere import cache as cache_module
from est_ocp.sphere.cache import (
    cache_directory,
    cache_file,
    cached_points,
    load_points,
    save_points,
    shipped_file,
)
from tests.sphere.helpers import random_points

SIZE = 20


@pytest.fixture
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EST_OCP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counter:
    """Random points, and how many times they were computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, size: int) -> torch.Tensor:
        self.calls += 1
        return random_points(size, seed=self.calls)


def _make(queue, barrier, seed: int) -> None:
    def compute(size: int) -> torch.Tensor:
        points = random_points(size, seed)
        barrier.wait()
        return points

    queue.put(cached_points("test", SIZE, compute).numpy())


def test_processes_at_once(directory):
    context = multiprocessing.get_context("fork")
    queue, barrier = context.Queue(), context.Barrier(4)
    # every process computes other points, and all must agree on those of one of them
    processes = [context.Process(target=_make, args=(queue, barrier, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    stored = load_points(cache_file("test", SIZE), SIZE).numpy()
    for result in results:
        np.testing.assert_array_equal(result, stored)
    assert [path.suffix for path in directory.iterdir()] == [".npz"], "temporary files remain"


def test_computed_once_and_read_back(directory):
    compute = Counter()
    first = cached_points("test", SIZE, compute)
    second = cached_points("test", SIZE, compute)
    assert compute.calls == 1
    assert torch.equal(first, second)
    assert stat.S_IMODE(cache_file("test", SIZE).stat().st_mode) == 0o644


def test_another_process_that_was_first_wins(directory):
    earlier = random_points(SIZE, seed=99)

    def compute(size: int) -> torch.Tensor:
        save_points(cache_file("test", size), earlier)
        return random_points(size, seed=1)

    assert torch.equal(cached_points("test", SIZE, compute), earlier)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _flip(path: Path) -> None:
    with np.load(path) as stored:
        points, digest = stored["points"].copy(), stored["sha256"]
    points[0] = points[0][::-1]
    np.savez(path, points=points, sha256=digest)


def _scale(path: Path) -> None:
    save_points(path, 2 * random_points(SIZE))


def _fewer(path: Path) -> None:
    save_points(path, random_points(SIZE - 1))


def _text(path: Path) -> None:
    path.write_text("not a point set")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _flip, _scale, _fewer, _text, _empty])
def test_damaged_file_is_replaced(directory, damage):
    compute = Counter()
    cached_points("test", SIZE, compute)
    damage(cache_file("test", SIZE))
    with pytest.warns(UserWarning, match="computed again") as caught:
        points = cached_points("test", SIZE, compute)
    assert len(caught) == 1
    assert compute.calls == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cached_points("test", SIZE, compute), points)
    assert compute.calls == 2


def test_place_that_cannot_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EST_OCP_CACHE", str(blocked / "cache"))
    compute = Counter()
    with pytest.warns(UserWarning, match="EST_OCP_CACHE") as caught:
        points = cached_points("test", SIZE, compute)
    assert len(caught) == 1
    assert points.shape == (SIZE, 3)


def test_read_only_directory(directory, monkeypatch):
    compute = Counter()
    stored = cached_points("test", SIZE, compute)
    directory.chmod(0o555)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "read-only")

    # root may write anywhere, so the refusal is also simulated
    monkeypatch.setattr(cache_module.tempfile, "mkstemp", refuse)
    try:
        assert torch.equal(cached_points("test", SIZE, compute), stored)
        with pytest.warns(UserWarning, match="cannot keep"):
            assert cached_points("test", SIZE + 1, compute).shape == (SIZE + 1, 3)
    finally:
        directory.chmod(0o755)


def test_failed_write_leaves_nothing(directory, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(cache_module.os, "link", refuse)
    monkeypatch.setattr(cache_module.os, "replace", refuse)
    with pytest.warns(UserWarning, match="no space left"):
        cached_points("test", SIZE, Counter())
    assert list(directory.iterdir()) == []


def test_file_systems_without_links(directory, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(95, "operation not supported")

    monkeypatch.setattr(cache_module.os, "link", refuse)
    compute = Counter()
    points = cached_points("test", SIZE, compute)
    assert torch.equal(cached_points("test", SIZE, compute), points)
    assert compute.calls == 1


def test_directory_and_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (None, ""):
        if unset is None:
            monkeypatch.delenv("EST_OCP_CACHE", raising=False)
        else:
            monkeypatch.setenv("EST_OCP_CACHE", unset)
        assert cache_directory() == tmp_path / ".cache" / "est_ocp"
    name = cache_file("design", 30).name
    assert name != cache_file("design", 31).name
    monkeypatch.setattr(cache_module, "ALGORITHM_VERSION", 2)
    assert cache_file("design", 30).name != name, "a new version must not read old files"


def test_shipped_files_are_whole():
    files = sorted(shipped_file("design", 24).parent.glob("*.npz"))
    assert len(files) >= 11
    assert sum(os.path.getsize(path) for path in files) < 100_000
    for path in files:
        load_points(path, int(path.stem.split("-")[1]))
