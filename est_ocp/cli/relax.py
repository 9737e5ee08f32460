"""``est-ocp relax``: relax structures with a checkpoint, many at a time."""

from __future__ import annotations

import argparse
import hashlib
import math
from pathlib import Path
from typing import Any

from est_ocp.errors import ConfigError

_OPTIMIZERS = ("lbfgs", "bfgs", "fire", "mdmin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="structure files (.traj, .xyz, .extxyz, .cif, .vasp, ...; several structures a file "
        "are all relaxed), or IS2RE LMDBs (data.lmdb or its folder)",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="S2EF checkpoint: inference_ckpt.pt, a folder checkpoints/step_N, or a run's folder",
    )
    parser.add_argument(
        "--out",
        help="folder of the results (default: <first input>_relaxed); if it has some of the same "
        "settings, only what is left is relaxed",
    )
    parser.add_argument(
        "--fmax", type=float, default=0.02, help="largest force at the end, eV/A (default 0.02)"
    )
    parser.add_argument(
        "--steps", type=int, default=200, help="most steps of a structure (default 200)"
    )
    parser.add_argument("--optimizer", choices=_OPTIMIZERS, default="lbfgs", help="ASE's optimiser")
    parser.add_argument(
        "--maxstep", type=float, help="longest step of an atom, A (default: the optimiser's 0.2)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="structures at a time (default 32)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument(
        "--dataset", help="whose tasks predict, for a checkpoint of several datasets (default oc20)"
    )
    parser.add_argument(
        "--trajectories", action="store_true", help="keep every step in trajectories/<name>.traj"
    )
    parser.add_argument(
        "--part",
        default="1/1",
        metavar="K/N",
        help="relax every N-th structure only, from the K-th: one process a GPU, the same --out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Relax, save, and say how it went; 1 if a structure failed."""
    import torch

    from est_ocp.relaxation.folder import RelaxationFolder
    from est_ocp.relaxation.structures import load_all, open_source

    relaxer = _relaxer(arguments, torch.cuda.is_available())
    sources = [open_source(path) for path in arguments.inputs]
    structures = load_all(sources)
    out = Path(arguments.out or f"{sources[0].name}_relaxed")
    folder = RelaxationFolder(out, _settings(arguments), _part(arguments.part))
    if arguments.trajectories:
        relaxer.trajectories = out / "trajectories"
        relaxer.trajectories.mkdir(exist_ok=True)
    rows = _relax(relaxer, folder, structures)
    print(_summary(rows, len(structures), out))
    if len(rows) == len(structures):
        _save_splits(sources, structures, rows, out, arguments.checkpoint)
    return 1 if any(row.error for row in rows.values()) else 0


def _relaxer(arguments: argparse.Namespace, has_gpu: bool) -> Any:
    """Check the settings and load the checkpoint."""
    from est_ocp.evaluation import load_unit
    from est_ocp.relaxation import BatchedRelaxer, BatchEvaluator

    device = arguments.device or ("cuda" if has_gpu else "cpu")
    if device == "cuda" and not has_gpu:
        raise ConfigError("there is no GPU that torch can use; take --device cpu")
    unit = load_unit(arguments.checkpoint, device=device)
    return BatchedRelaxer(
        BatchEvaluator(unit, arguments.dataset),
        arguments.optimizer,
        arguments.fmax,
        arguments.steps,
        arguments.batch_size,
        arguments.maxstep,
    )


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on."""
    from est_ocp.evaluation import find_inference_checkpoint

    file = find_inference_checkpoint(arguments.checkpoint)
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "inputs": [_stamp(Path(path).expanduser()) for path in arguments.inputs],
        "checkpoint": digest,
        **{key: getattr(arguments, key) for key in ("fmax", "steps", "optimizer", "maxstep")},
        "dataset": arguments.dataset,
    }


def _stamp(path: Path) -> list[Any]:
    """What tells an input from a later one of the same name."""
    files = sorted(path.glob("*.lmdb")) if path.is_dir() else [path]
    status = [file.stat() for file in files]
    return [str(path.resolve()), *([s.st_size, s.st_mtime_ns] for s in status)]


def _part(text: str) -> tuple[int, int]:
    """Read ``K/N``."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal()):
        raise ConfigError(f"--part takes K/N, for example 1/4, not '{text}'")
    return int(first), int(second)


def _relax(relaxer: Any, folder: Any, structures: dict[str, Any]) -> dict[str, Any]:
    """Relax what is left, writing each result, and join; return the rows of all parts."""
    from tqdm import tqdm

    names = list(structures)
    left = folder.left(names)
    mine = len(range(folder.part[0] - 1, len(names), folder.part[1]))
    steps = 0
    with tqdm(
        total=mine, initial=mine - len(left), desc="relax", unit="structure", disable=None
    ) as bar:
        for relaxed in relaxer.run((name, structures[name]) for name in left):
            row = folder.add(relaxed)
            if row.error:
                bar.write(f"{row.name} failed: {row.error}")
            steps += row.steps
            bar.set_postfix(steps=steps)
            bar.update()
    return folder.join(names)


def _summary(rows: dict[str, Any], total: int, out: Path) -> str:
    """Say how many are done, converged and failed."""
    converged = sum(row.converged for row in rows.values())
    failed = [row for row in rows.values() if row.error]
    lines = [
        f"{len(rows) - len(failed)} of {total} structures in {out}: {converged} converged, "
        f"{len(rows) - len(failed) - converged} stopped after the most steps, {len(failed)} failed"
    ]
    lines += [f"  {row.name}: {row.error}" for row in failed[:20]]
    if len(failed) > 20:
        lines.append(f"  and {len(failed) - 20} more in summary.csv")
    if len(rows) < total:
        lines.append(f"{total - len(rows)} are left to other parts")
    return "\n".join(lines)


def _save_splits(
    sources: list[Any], structures: dict[str, Any], rows: dict[str, Any], out: Path, checkpoint: str
) -> None:
    """Write the relaxed energies of IS2RE splits; print errors where there are labels."""
    from est_ocp.evaluation import find_inference_checkpoint, metrics_of
    from est_ocp.evaluation.checkpoint import read_checkpoint
    from est_ocp.evaluation.results import text_table
    from est_ocp.evaluation.stamp import checkpoint_stamp
    from est_ocp.relaxation.structures import LmdbSource

    file = find_inference_checkpoint(checkpoint)
    stamp = {"checkpoint": checkpoint_stamp(file, read_checkpoint(file).tasks_config)}
    energies = iter(rows[name].energy_last for name in structures)
    table = []
    for source in sources:
        known = {
            number: energy
            for number, energy in zip(range(len(source.names)), energies, strict=False)
            if math.isfinite(energy)
        }
        if not isinstance(source, LmdbSource) or not known:
            continue
        predictions = source.predictions(known)
        predictions.save(out / f"{source.name}.npz", stamp)
        print(f"{len(known)} relaxed energies in {out / f'{source.name}.npz'}")
        if len(known) < len(source.names):
            print(f"  {len(source.names) - len(known)} structures have no energy: not in the file")
        if predictions.energy_label is not None:
            metrics = metrics_of(predictions)
            table.append(
                [
                    source.name,
                    str(len(predictions)),
                    f"{1000 * metrics['energy_mae']:.1f}",
                    f"{100 * metrics['ewt']:.2f}",
                ]
            )
    if table:
        print(text_table(["split", "structures", "energy MAE (meV)", "EwT (%)"], table))
