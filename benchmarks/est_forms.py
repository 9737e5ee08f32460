"""Time of the EST update's two forms: functions times vectors, and features at all points.

    python benchmarks/est_forms.py

Forward and backward of a block in float32 on the CPU, by the number of points a function: where
:data:`est_ocp.nn.est_update.POINTS_A_FUNCTION` comes from. The median of steps, the better of two
rounds in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from est_ocp.nn import ESTUpdateBlock
from est_ocp.nn.factored_feature import num_functions
from est_ocp.sphere import make_rule

#: Degree and Lebedev rules.
CASES = {2: (26, 38, 50), 4: (50, 86, 110), 6: (110, 146, 194)}


def milliseconds(block: ESTUpdateBlock, x: torch.Tensor, factored: bool, steps: int) -> float:
    """Median of steps in one of the forms."""
    block.factored = factored
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=24)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    print("L   S  points a function  products, ms  all points, ms  ratio")
    for lmax, sizes in CASES.items():
        for size in sizes:
            torch.manual_seed(0)
            block = ESTUpdateBlock(arguments.channels, lmax, make_rule("lebedev", size))
            shape = (arguments.nodes, (lmax + 1) ** 2, arguments.channels)
            x = torch.randn(shape, requires_grad=True)
            rounds = [
                [milliseconds(block, x, factored, arguments.steps) for factored in (True, False)]
                for _ in range(2)
            ]
            products, points = (min(times) for times in zip(*rounds, strict=True))
            share = size / num_functions((lmax + 1) ** 2, 1)
            print(
                f"{lmax} {size:>3}  {share:>17.2f}  {products:>12.1f}  {points:>14.1f}"
                f"  {products / points:>5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
