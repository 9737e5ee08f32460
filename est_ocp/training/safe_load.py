"""Read checkpoints without running anything that they name.

A checkpoint of fairchem is a pickle, and a pickle may call whatever it can import. Here
``torch.load`` runs with ``weights_only=True`` under the short list of classes that such files
hold; everything else is refused by its name, unless the file is trusted.
"""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import re
import threading
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from est_ocp.errors import CheckpointError
from est_ocp.trust import TRUST, environment, trusted

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
#: torch's switch and its list of classes belong to the whole process: one reader at a time.
_ONE_READER = threading.RLock()


def inference_classes() -> list[Any]:
    """Classes that an inference checkpoint holds: fairchem's record and the nodes of a config."""
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint

    return [MLIPInferenceCheckpoint, *_config_classes()]


def _config_classes() -> list[Any]:
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    nodes = [DictConfig, ListConfig, AnyNode, ContainerMetadata, Metadata]
    return [*nodes, collections.defaultdict, dict, list, int, typing.Any]


@contextlib.contextmanager
def only_weights(trust: bool = False) -> Iterator[None]:
    """Make every ``torch.load`` of an inference checkpoint in this block a safe one.

    fairchem asks for ``weights_only=False``; torch's own switch overrules it.
    """
    if trusted(trust):
        yield
        return
    with (
        _ONE_READER,
        environment(_FORCE, "1"),
        environment(_FORCE_NOT, "0"),  # torch refuses both at once
        torch.serialization.safe_globals(inference_classes()),
    ):
        yield


def load_file(file: str | Path, trust: bool = False, mmap: bool = False) -> Any:
    """Read an inference checkpoint or a file of random states.

    Parameters
    ----------
    file : path
        Written by ``torch.save``, zipped or in its first format.
    trust : bool
        Run what the file names.
    mmap : bool
        Leave the tensors in the file (zipped files only).

    Raises
    ------
    CheckpointError
        If the file names anything but the classes that such files need, which is not run, or is
        damaged.
    """
    with open(file, "rb") as stream:
        mmap = mmap and stream.read(4) == b"PK\x03\x04"
    return _load(str(file), str(file), trust, inference_classes(), mmap)


def _load(source: Any, name: str, trust: bool, classes: list[Any], mmap: bool = False) -> Any:
    options = {"map_location": "cpu", "mmap": mmap or None}
    try:
        if trusted(trust):
            return torch.load(source, weights_only=False, **options)
        with _ONE_READER, torch.serialization.safe_globals(classes):
            return torch.load(source, weights_only=True, **options)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{name} names code that is not installed ({first_line(error)})"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is not None:
            raise CheckpointError(_refusal(name, refused.group(1))) from None
        raise CheckpointError(
            f"{name} is damaged or is no checkpoint ({first_line(error)}); take another one, or "
            "train again"
        ) from None


def _refusal(file: str, name: str) -> str:
    return (
        f"{file} refers to '{name}', which is not part of a checkpoint and was not run; use a file "
        "from a source that you trust, or allow it with --trust (in Python trust=True, for "
        f"fairchem's command {TRUST}=1)"
    )


class _IndexUnpickler(pickle.Unpickler):
    """Reads a training checkpoint's index; only the classes of such an index are let through."""

    def __init__(self, stream: Any, file: str) -> None:
        super().__init__(stream)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _index_classes() or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise CheckpointError(_refusal(self._file, f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> Any:
        raise CheckpointError(_refusal(self._file, "a persistent id"))


def _index_classes() -> set[tuple[str, str]]:
    metadata = (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata",
        "TensorProperties", "ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )  # fmt: skip
    paths = {(m, n) for m in ("pathlib", "pathlib._local") for n in ("PosixPath", "PurePosixPath")}
    return paths | {
        *(("torch.distributed.checkpoint.metadata", name) for name in metadata),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
    }


def read_index(checkpoint: Path, trust: bool = False) -> Any:
    """Read a training checkpoint's index, ``.metadata``, a plain pickle.

    Raises
    ------
    CheckpointError
        If it names anything but the classes of such an index, which is not run, or is damaged.
    """
    file = checkpoint / ".metadata"
    try:
        with file.open("rb") as stream:
            if trusted(trust):
                return pickle.load(stream)
            return _IndexUnpickler(stream, str(file)).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{file} is damaged ({first_line(error)})") from None


def check_training_state(checkpoint: Path, trust: bool = False) -> None:
    """Refuse a training checkpoint whose loading would run code.

    torch reads the values that are no tensors (steps, schedules, the config) by plain pickles
    inside of the data files; each is read here first, under the same rules as weights.

    Raises
    ------
    CheckpointError
        Naming the file and what it refers to.
    """
    if trusted(trust):
        return
    index = read_index(checkpoint)
    classes = _config_classes()
    by_file: dict[str, list[Any]] = {}
    for key, info in index.storage_data.items():
        if isinstance(index.state_dict_metadata.get(key.fqn), BytesStorageMetadata):
            by_file.setdefault(info.relative_path, []).append(info)
    for name, entries in by_file.items():
        with (checkpoint / name).open("rb") as stream:
            for info in entries:
                # torch would decode the bytes first and so read others than are looked at here
                if getattr(info, "transform_descriptors", None):
                    raise CheckpointError(
                        _refusal(str(checkpoint / name), str(info.transform_descriptors))
                    )
                stream.seek(info.offset)
                content = io.BytesIO(stream.read(info.length))
                _load(content, str(checkpoint / name), False, classes)
    for file in checkpoint.glob("random_state_rank*.pt"):
        load_file(file)


def storage_sizes(index: Any) -> Mapping[str, int]:
    """Return how many bytes of each data file an index points to."""
    stored = index.storage_data.values()
    sizes = {info.relative_path: 0 for info in stored}
    for info in stored:
        sizes[info.relative_path] = max(sizes[info.relative_path], info.offset + info.length)
    return sizes


def first_line(error: BaseException) -> str:
    """Return an error's text, one line of it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
