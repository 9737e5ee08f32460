"""``est-ocp data``: write the demonstration data (S2EF and IS2RE), or QM9."""

from __future__ import annotations

import argparse

from est_ocp.errors import ConfigError

#: What can be written, to the folder it goes to by default.
_FOLDERS = {"demo": "data/demo", "qm9": "data/qm9"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("what", choices=list(_FOLDERS), help="which data")
    parser.add_argument("--out", help="folder to write into (data/demo, data/qm9)")
    parser.add_argument(
        "--from",
        dest="source_kind",
        choices=["qm9pack", "pyg-raw", "subset"],
        help="qm9: the package qm9pack (default), the raw files that torch_geometric downloads, or "
        "the 2,000 molecules that are embedded here",
    )
    parser.add_argument(
        "--source",
        metavar="PATH",
        help="qm9: qm9pack's wheel or folder (default: the installed package), or PyG's QM9/raw",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the data."""
    out = arguments.out or _FOLDERS[arguments.what]
    if arguments.what == "qm9":
        return _write_qm9(out, arguments.source_kind or "qm9pack", arguments.source)
    if arguments.source_kind or arguments.source:
        raise ConfigError("--from and --source are for `est-ocp data qm9` only")
    from est_ocp.data import write_demo_set

    for split, folder in write_demo_set(out).items():
        print(f"{split:<20}{folder}")
    return 0


def _write_qm9(out: str, kind: str, source: str | None) -> int:
    from est_ocp.data import write_qm9
    from est_ocp.qm9_targets import TARGETS

    summary = write_qm9(out, kind, source)
    sizes = summary["molecules"]
    for split, size in sizes.items():
        print(f"{split:<8}{size:>8} molecules  {out}/{split}")
    if sum(sizes.values()) != summary["of"]:
        print(f"{sum(sizes.values())} of QM9's {summary['of']} molecules")
    print("\ntarget  unit           mean      standard deviation (training set, less references)")
    for name, target in TARGETS.items():
        mean, std = summary["mean"][name], summary["std"][name]
        print(f"{name:<8}{target.unit:<12}{mean:>9.4f}{std:>14.4f}")
    print(f"\n{summary['licence']}")
    return 0
