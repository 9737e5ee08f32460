"""Compute the point sets shipped with the package, or print the table of docs/sphere.md.

python scripts/make_sphere_data.py            # write the missing files
python scripts/make_sphere_data.py --force    # compute all of them again
python scripts/make_sphere_data.py --table    # Markdown table of the rules
python scripts/make_sphere_data.py --timings  # seconds to compute without files
"""

from __future__ import annotations

import argparse
import time

from est_ocp.sphere import SphereRule, SphericalTransform, make_rule
from est_ocp.sphere.cache import save_points, shipped_file
from est_ocp.sphere.discrepancy import cap_discrepancy
from est_ocp.sphere.factory import OPTIMISED

SHIPPED: list[tuple[str, int]] = [
    *(("design", size) for size in (24, 32, 48, 64, 86, 90, 110, 128, 182)),
    *(("repulsion", size) for size in (90, 128)),
]

TABLE: list[tuple[str, int | tuple[int, int]]] = [
    ("fibonacci_poles", 128),
    ("fibonacci", 90),
    ("fibonacci", 128),
    *(entry for entry in SHIPPED if entry[0] == "repulsion"),
    *(entry for entry in SHIPPED if entry[0] == "design"),
    *(("lebedev", size) for size in (50, 86, 110, 146, 170, 194, 302)),
    ("product", (10, 9)),
    ("product", (10, 15)),
    ("product", (18, 18)),
]

TIMED: list[tuple[str, int]] = [
    *(("repulsion", size) for size in (128, 200)),
    *(("design", size) for size in (48, 90, 110, 128, 182, 200)),
]


def write_files(force: bool) -> None:
    """Compute the shipped files that are missing, or all of them."""
    for kind, size in SHIPPED:
        path = shipped_file(kind, size)
        if path.exists() and not force:
            continue
        save_points(path, OPTIMISED[kind](size))
        print(f"wrote {path.name}: degree {make_rule(kind, size).degree}", flush=True)


def print_table() -> None:
    """Print the quality of the rules as a Markdown table."""
    print("| kind | S | degree | min angle (°) | cap discrepancy | round trip, lmax 4 |")
    print("|---|---|---|---|---|---|")
    for kind, size in TABLE:
        rule = make_rule(kind, size)
        shown = f"{rule.num_points}"
        if kind == "product":
            shown += f" ({size[0]}x{size[1]})"
        fits = rule.num_points >= 25
        error = f"{SphericalTransform(rule, lmax=4).round_trip_error:.0e}" if fits else "-"
        print(
            f"| {kind} | {shown} | {rule.degree} | {rule.min_angle:.1f} "
            f"| {cap_discrepancy(rule):.5f} | {error} |"
        )


def print_timings() -> None:
    """Print how long the optimised rules take without shipped files or cache."""
    print("| kind | S | seconds | degree |")
    print("|---|---|---|---|")
    for kind, size in TIMED:
        start = time.perf_counter()
        points = OPTIMISED[kind](size)
        seconds = time.perf_counter() - start
        degree = SphereRule.from_points(f"{kind}-{size}", points).degree
        print(f"| {kind} | {size} | {seconds:.1f} | {degree} |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="compute all shipped files again")
    parser.add_argument("--table", action="store_true", help="print the table of rules")
    parser.add_argument("--timings", action="store_true", help="print computing times")
    arguments = parser.parse_args()
    if arguments.table:
        print_table()
    elif arguments.timings:
        print_timings()
    else:
        write_files(arguments.force)


if __name__ == "__main__":
    main()
