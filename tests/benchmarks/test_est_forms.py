"""The two forms of the EST update are timed, and are chosen as the benchmark says."""

from __future__ import annotations

from est_ocp.nn.est_update import POINTS_A_FUNCTION


def test_a_line_a_case(bench, capsys):
    forms = bench("est_forms")
    forms.main(["--nodes", "1", "--channels", "8", "--steps", "1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    cases = [(lmax, size) for lmax, sizes in forms.CASES.items() for size in sizes]
    assert [(int(line[0]), int(line[1])) for line in lines] == cases
    shares = [float(line[2]) for line in lines]
    # On both sides of the bound.
    assert min(shares) < POINTS_A_FUNCTION < max(shares)
    assert all(float(line[3]) > 0 and float(line[4]) > 0 for line in lines)
