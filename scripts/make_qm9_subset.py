"""Make the embedded files of QM9: the split, and a subset of 2,000 molecules.

    pip download qm9pack==1.0.3 --no-deps
    python scripts/make_qm9_subset.py --source qm9pack-1.0.3-py3-none-any.whl

The subset has 1,600 molecules of the training part of the split, 200 of validation and 200 of the
test, drawn at random. QM9 (Ramakrishnan et al., Sci. Data 1, 140022, 2014) is published under
CC BY 4.0; est_ocp/data/embedded/QM9.md says so beside the files.
"""

from __future__ import annotations

import argparse

import numpy as np

from est_ocp.data.qm9_sources import read_qm9pack
from est_ocp.data.qm9_split import QM9_SPLITS, draw_split, save_split
from est_ocp.data.qm9_subset import SUBSET_FILE, pack_subset

SIZES = {"train": 1600, "val": 200, "test": 200}
SEED = 2000


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="qm9pack's wheel or folder")
    molecules = read_qm9pack(parser.parse_args().source)
    parts = draw_split(molecules.index)
    save_split(parts)
    rng = np.random.default_rng(SEED)
    chosen = [rng.choice(parts[name], SIZES[name], replace=False) for name in QM9_SPLITS]
    places = np.searchsorted(molecules.index, np.sort(np.concatenate(chosen)))
    pack_subset(molecules.take(places), SUBSET_FILE)
    print(f"{SUBSET_FILE}: {SUBSET_FILE.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
