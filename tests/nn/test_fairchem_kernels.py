"""The one module of the blocks that imports fairchem."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_FAIRCHEM = """
import sys
sys.modules["fairchem"] = None
import est_ocp.nn.graph_attention, est_ocp.nn.grid_feed_forward, est_ocp.nn.init
from est_ocp.nn.edge_frame import EdgeFrame
print("imported", flush=True)
EdgeFrame(2, 2)
"""


def test_only_frames_need_fairchem_and_say_which() -> None:
    command = [sys.executable, "-c", WITHOUT_FAIRCHEM]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "imported\n", result.stderr
    assert result.returncode != 0
    assert "pip install fairchem-core==2.24.0" in result.stderr
