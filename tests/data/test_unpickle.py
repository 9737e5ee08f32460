"""The allow-list unpickler reads every kind of OC20 record and runs nothing else."""

from __future__ import annotations

import collections
import functools
import io
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from est_ocp.data.unpickle import as_fields, count_atoms, safe_loads
from est_ocp.errors import DataError
from tests.data.conftest import old_pyg_pickle

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.pair = (function, arguments)

    def __reduce__(self):
        return self.pair


@pytest.fixture
def trap(tmp_path):
    """A file that any payload which is run would make."""
    return tmp_path / "ran"


def refused(payload: bytes, name: str, trap) -> None:
    with pytest.raises(DataError, match=name):
        safe_loads(payload)
    with pytest.raises(DataError):
        count_atoms(payload)
    assert not trap.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reads_pyg2_records(protocol):
    data = Data(pos=torch.randn(4, 3), natoms=4, y=-1.25, force=torch.randn(4, 3).double())
    fields = as_fields(safe_loads(pickle.dumps(data, protocol=protocol)))
    assert set(fields) == {"pos", "natoms", "y", "force"}
    assert torch.equal(fields["pos"], data.pos)
    assert torch.equal(fields["force"], data.force)
    assert fields["force"].dtype == torch.float64
    assert fields["y"] == -1.25


def test_reads_pyg1_records(monkeypatch):
    pos = torch.randn(5, 3)
    payload = old_pyg_pickle(monkeypatch, pos=pos, y=2.0, tags=torch.tensor([0, 1, 2, 1, 0]))
    fields = as_fields(safe_loads(payload))
    assert set(fields) == {"pos", "y", "tags"}
    assert torch.equal(fields["pos"], pos)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("dtype", ["float32", ">f8", "int64", "bool", "U5"])
def test_reads_numpy(protocol, core, dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    value = {"a": array, "fortran": np.asfortranarray(array), "scalar": array[1, 2]}
    payload = pickle.dumps(value, protocol=protocol)
    if protocol == 2:
        # Protocol 2 names modules in lines of text, so the older name can be put in.
        payload = payload.replace(b"numpy._core", core.encode())
    back = safe_loads(payload)
    for key in value:
        assert np.array_equal(back[key], value[key])
        assert back[key].dtype.kind == value[key].dtype.kind
        assert back[key].dtype.itemsize == value[key].dtype.itemsize


def test_reads_containers_and_tensor_views():
    base = torch.arange(24.0)
    value = {
        "view": base.reshape(4, 6)[:, 1::2],
        "dtypes": [base.to(kind) for kind in (torch.bool, torch.int32, torch.bfloat16)],
        "size": base.shape,
        "set": {1, 2},
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, a=[1]),
    }
    back = safe_loads(pickle.dumps(value))
    assert torch.equal(back["view"], value["view"])
    assert all(torch.equal(a, b) for a, b in zip(back["dtypes"], value["dtypes"], strict=True))
    assert back["set"] == {1, 2}
    assert back["ordered"] == value["ordered"]
    assert back["default"] == value["default"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_refuses_calls(protocol, trap):
    for function, name in (
        (os.system, "system"),
        (eval, "eval"),
        (exec, "exec"),
        (getattr, "getattr"),
        (functools.partial, "partial"),
        (torch.load, "load"),
    ):
        payload = pickle.dumps({"pos": Call(function, f"touch {trap}")}, protocol=protocol)
        refused(payload, name, trap)


def test_refuses_code_in_a_nested_tensor(trap):
    for protocol in PROTOCOLS:
        stream = io.BytesIO()
        torch.save(
            Call(os.system, f"touch {trap}"), stream, pickle_protocol=protocol,
            _use_new_zipfile_serialization=False,
        )  # fmt: skip
        payload = pickle.dumps(Call(torch.storage._load_from_bytes, stream.getvalue()))
        with pytest.raises(DataError, match="system"):
            safe_loads(payload)
        assert not trap.exists()


def test_refuses_a_nested_zip_and_a_bare_pickle(trap):
    stream = io.BytesIO()
    torch.save([Call(eval, f"open({str(trap)!r}, 'w')")], stream)
    for inner in (stream.getvalue(), pickle.dumps(Call(os.system, f"touch {trap}"))):
        with pytest.raises(DataError):
            safe_loads(pickle.dumps(Call(torch.storage._load_from_bytes, inner)))
        assert not trap.exists()


@pytest.mark.parametrize("name", ["_rebuild_tensor.__globals__", "sys.modules", "warnings.sys"])
def test_refuses_dotted_names(name):
    payload = b"\x80\x04" + b"\x8c\x0ctorch._utils" + bytes([0x8C, len(name)]) + name.encode()
    with pytest.raises(DataError, match=r"torch\._utils"):
        safe_loads(payload + b"\x93.")


def test_refuses_torch_geometric_outside_its_data():
    with pytest.raises(DataError, match=r"torch_geometric\.deprecation"):
        safe_loads(b"ctorch_geometric.deprecation\nwarnings\n.")


def test_functions_and_stand_ins_cannot_be_altered():
    """BUILD sets attributes: neither an allowed function nor the stand-in class may take them."""
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch_geometric.data\nData\n"):
        with pytest.raises(DataError):
            safe_loads(b"\x80\x02" + target + b"}(X\x04\x00\x00\x00evilK\x01ub.")
    assert as_fields(safe_loads(pickle.dumps(Data(natoms=3)))) == {"natoms": 3}


def test_refuses_object_arrays_and_forged_dtypes():
    with pytest.raises(DataError, match="NumPy array"):
        safe_loads(pickle.dumps(np.array([object, None])))
    with pytest.raises(DataError, match="NumPy array"):
        safe_loads(pickle.dumps(np.zeros(2, dtype=[("a", "f4")])))


def test_refuses_codecs_and_tensors_out_of_bounds():
    with pytest.raises(DataError, match="encode"):
        safe_loads(b"c_codecs\nencode\n(Vabc\nVbz2\ntR.")
    storage = torch.storage.TypedStorage([0.0] * 4, dtype=torch.float32, _internal=True)
    for size, stride in (((100,), (1,)), ((2, 2), (2, 1)), ((2,), (-1,))):
        bad = Call(torch._utils._rebuild_tensor_v2, storage, 2, size, stride, False, {})
        with pytest.raises(DataError, match="holds a tensor"):
            safe_loads(pickle.dumps(bad))


@pytest.mark.parametrize("payload", [b"", b"junk", b"\x80\x05.", sys.version.encode()])
def test_damaged_pickles(payload):
    with pytest.raises(DataError, match="damaged"):
        safe_loads(payload)


def test_count_atoms_without_decoding(monkeypatch):
    record = Data(pos=torch.randn(7, 3), natoms=7, y=0.0)
    assert count_atoms(pickle.dumps(record)) == 7
    assert count_atoms(old_pyg_pickle(monkeypatch, pos=torch.randn(6, 3))) == 6
    assert count_atoms(pickle.dumps({"pos": np.zeros((5, 3))})) == 5
    with pytest.raises(DataError, match="natoms"):
        count_atoms(pickle.dumps(Data(y=1.0)))
    with pytest.raises(DataError, match="list"):
        count_atoms(pickle.dumps([1]))
