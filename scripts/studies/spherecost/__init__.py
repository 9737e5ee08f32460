"""Parts of the study of points on the sphere: accuracy, time and memory against S and L.

It takes models, counters and fits of the benchmarks, which lie outside the package.
"""

import sys
from pathlib import Path

_BENCHMARKS = str(Path(__file__).parents[3] / "benchmarks")
if _BENCHMARKS not in sys.path:
    sys.path.append(_BENCHMARKS)
