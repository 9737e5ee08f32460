"""Measure stock EquiformerV2-31M (fairchem-core 1.10.0) on the batches of a file, as JSON lines.

    python benchmarks/stock.py FOLDER BATCHES ROWS --device cuda --steps 12

Called by ``run.py --stock FOLDER``; FOLDER holds the unpacked wheel (``pip download --no-deps
fairchem-core==1.10.0``, then unzip), BATCHES what :mod:`measuring.peer_batches` wrote, ROWS a JSON
list of rows. The wheel's model code is imported alone, without its trainers' dependencies, so this
must be a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import importlib.machinery
import importlib.util
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from measuring.machine import facts
from measuring.peer_batches import on_device, read
from measuring.timing import autocast, measure, use_precision

#: Settings of the published 31M model (its config file); weights are random.
SETTINGS: dict[str, Any] = {
    "use_pbc": True, "regress_forces": True, "otf_graph": True, "max_neighbors": 20,
    "max_radius": 12.0, "max_num_elements": 90, "num_layers": 8, "sphere_channels": 128,
    "attn_hidden_channels": 64, "num_heads": 8, "attn_alpha_channels": 64,
    "attn_value_channels": 16, "ffn_hidden_channels": 128, "norm_type": "layer_norm_sh",
    "lmax_list": [4], "mmax_list": [2], "grid_resolution": 18, "num_sphere_samples": 128,
    "edge_channels": 128, "use_atom_edge_embedding": True, "distance_function": "gaussian",
    "num_distance_basis": 512, "attn_activation": "silu", "use_s2_act_attn": False,
    "ffn_activation": "silu", "use_gate_act": False, "use_grid_mlp": True, "alpha_drop": 0.1,
    "drop_path_rate": 0.1, "proj_drop": 0.0, "weight_init": "uniform",
}  # fmt: skip
#: Changes of them for a run whose figures do not matter.
QUICK = {"num_layers": 1, "lmax_list": [2], "sphere_channels": 16, "max_radius": 4.0}
WARM = 3


def package(name: str, folder: Path) -> None:
    """Register a package whose ``__init__`` is not run."""
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def stock_model(folder: Path, **changes: Any) -> torch.nn.Module:
    """Return the stock model of an unpacked wheel.

    Parameters
    ----------
    folder : path
        Holds ``fairchem/core``.
    **changes
        Of :data:`SETTINGS`.

    Raises
    ------
    SystemExit
        If the folder holds no such wheel.
    """
    core = folder.resolve() / "fairchem" / "core"
    if not (core / "models" / "equiformer_v2").is_dir():
        raise SystemExit(
            f"{folder} holds no unpacked fairchem-core 1.10.0: run 'pip download --no-deps "
            "fairchem-core==1.10.0' and unzip the wheel there"
        )
    package("fairchem", core.parent)
    package("fairchem.core", core)
    sys.modules["fairchem.core"].__version__ = "1.10.0"
    package("fairchem.core.models", core / "models")
    if importlib.util.find_spec("torch_scatter") is None:
        # Imported by the model's modules, never called by this model.
        missing = types.ModuleType("torch_scatter")
        missing.scatter = missing.segment_coo = missing.segment_csr = None
        sys.modules["torch_scatter"] = missing
    # The model looks for it among the loaded modules.
    importlib.import_module("e3nn.o3")
    model = importlib.import_module("fairchem.core.models.equiformer_v2").EquiformerV2
    out = model(**(SETTINGS | changes))
    # Or else its decorator turns gradients on where they were off.
    out.direct_forces = True
    return out


def steps_of(model: torch.nn.Module, row: dict[str, Any], device: str) -> Any:
    """Function of a batch that trains or infers, as for this project's models."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=1e-3)

    def train(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(row["precision"], device):
            out = model(batch)
        energy = (out["energy"].float().flatten() - batch.energy).abs().mean()
        forces = (out["forces"].float() - batch.forces).norm(dim=-1).mean()
        (4 * energy + 100 * forces).backward()
        optimizer.step()

    def infer(batch: Any) -> None:
        with torch.no_grad(), autocast(row["precision"], device):
            model(batch)

    return train if row["mode"] == "train" else infer


def main() -> None:
    """Print one JSON line for each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("batches", type=Path)
    parser.add_argument("rows", type=json.loads)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds of the epoch")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = stock_model(arguments.folder, **(QUICK if arguments.quick else {}))
    model = model.to(arguments.device)
    data = read(arguments.batches)
    machine = facts(arguments.device) | {"fairchem": "1.10.0"}
    for row in arguments.rows:
        use_precision(row["precision"])
        model.train(row["mode"] == "train")
        record = row | machine
        try:
            if time.time() > arguments.deadline:
                raise TimeoutError("no time left")
            step = steps_of(model, row, arguments.device)
            batches = [on_device(b, arguments.device) for b in data[row["batch"]]]
            record |= measure(step, batches, arguments.steps, WARM)
        except torch.OutOfMemoryError:
            record["error"] = "out of memory"
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"[:160]
        step = batches = None
        model.zero_grad(set_to_none=True)
        gc.collect()
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
