"""The page about GotenNet: its code runs, its commands exist, its sizes are the models'."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from est_ocp.models import GotenNetBaseline, GotenNetEST
from tests.nn.gotennet.original import Recording

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "gotennet.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_the_code_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(code, {})
    assert "torch.Size([4, 9, 32]) torch.Size([4, 32])" in capsys.readouterr().out


@pytest.mark.parametrize("cls", [GotenNetBaseline, GotenNetEST])
def test_sizes_are_those_of_the_models(cls, capsys):
    (command,) = [shlex.split(c) for c in COMMANDS if f"{cls.__name__}()" in c]
    exec(command[2], {})
    (size,) = re.findall(rf"(?m)^\| `{cls.__name__}` \| ([\d,]+) \|$", PAGE)
    assert f"{int(capsys.readouterr().out):,}" == size


def test_commands_name_tests_that_exist():
    tests = [shlex.split(c) for c in COMMANDS if c.startswith("pytest")]
    assert len(tests) == 2
    for words in tests:
        (path,) = [w for w in words if w.endswith(".py")]
        text = (ROOT / path).read_text()
        assert "-k" not in words or words[words.index("-k") + 1] in text


def test_the_recording_is_what_the_page_says():
    config = Recording().config
    assert (config["n_interactions"], config["n_atom_basis"]) == (2, 16)
    assert f"{config['n_interactions']} layers, {config['n_atom_basis']} channels" in PAGE
