"""The commands of ``docs/preflight.md`` run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from est_ocp.cli.main import build_parser, main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "preflight.md").read_text()
COMMANDS = re.findall(r"^    (est-ocp .*)$", TEXT, flags=re.MULTILINE)


def test_every_command_is_understood():
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        name, *words = shlex.split(command)[1:]
        arguments = build_parser(name).parse_args([name, *words])
        if name == "preflight":
            assert (ROOT / arguments.config).is_file()


def test_options_of_the_page_exist():
    options = set(re.findall(r"^\| `(--[\w-]+)", TEXT, flags=re.MULTILINE))
    parser = build_parser("preflight")
    text = parser._subparsers._group_actions[0].choices["preflight"].format_help()
    assert options == {"--samples", "--gpu-memory", "--json"}
    assert all(option in text for option in options)


def test_the_demonstration_passes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    data, run = COMMANDS[2:]
    assert main(shlex.split(data)[1:]) == 0
    assert main([*shlex.split(run)[1:], "--samples", "32"]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    # Every check that a sound data set meets is explained on the page.
    names = set(re.findall(r"^(?:OK|SKIP|WARN) +(.+?)(?: \(|  )", out, flags=re.MULTILINE))
    rows = re.findall(r"^\| ([a-z ,]+) \|", TEXT, flags=re.MULTILINE)
    explained = {word.strip() for row in rows for word in row.split(",")}
    assert len(names) > 15
    assert {name.replace("head energy", "head") for name in names} <= explained
