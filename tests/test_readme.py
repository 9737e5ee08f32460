"""The README's Python runs as it stands, and its links and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.fixtures import tiny_data, tiny_run

__all__ = ["tiny_data", "tiny_run"]

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_layers_alone():
    scope: dict = {}
    (code,) = [block for block in BLOCKS if "ESTUpdateBlock" in block]
    exec(code, scope)
    assert scope["x"].shape == (10, 9, 32)
    assert torch.isfinite(scope["x"]).all()


def test_a_checkpoint_in_ase(tiny_run, capsys):
    scope: dict = {}
    (code,) = [block for block in BLOCKS if "FAIRChemCalculator" in block]
    assert "runs/ID" in code
    exec(code.replace("runs/ID", str(tiny_run)), scope)
    assert "(13, 3)" in capsys.readouterr().out
    assert np.isfinite(scope["slab"].get_forces()).all()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("http"):
            assert ((ROOT / page).parent / link).exists(), link
    for config in re.findall(r"configs/[\w/]+\.ya?ml", text):
        assert (ROOT / config).exists() or (ROOT / "est_ocp" / config).exists(), config
