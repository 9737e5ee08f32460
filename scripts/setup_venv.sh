#!/usr/bin/env bash
# Create a virtual environment with est-ocp, its dependencies and the development tools.
#
#   PYTHON   interpreter to use (default python3; 3.11 or 3.12)
#   VENV     folder of the environment (default .venv)
#   EXTRAS   optional dependencies to install (default dev)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
EXTRAS=${EXTRAS:-dev}

command -v "$PYTHON" >/dev/null || { echo "error: '$PYTHON' not found; install Python 3.11 or 3.12, or run with PYTHON=/path/to/python" >&2; exit 2; }
"$PYTHON" - <<'PY' || exit 2
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"error: Python {sys.version.split()[0]} found; est-ocp needs 3.11 or 3.12: make PYTHON=python3.11 ...")
PY

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
PIP=("$VENV/bin/python" -m pip --disable-pip-version-check)

# Without an NVIDIA GPU the CPU build of PyTorch saves several gigabytes; if its index cannot be
# reached, the ordinary build below does the same work.
if ! "$VENV/bin/python" -c "import torch" 2>/dev/null && [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    echo "installing the CPU build of PyTorch ..."
    "${PIP[@]}" install --quiet --no-deps --retries 0 --timeout 15 \
        --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0" 2>/dev/null \
        || echo "  CPU index not reachable; the ordinary build will be installed"
fi
echo "installing est-ocp and its dependencies into $VENV (one to three minutes) ..."
"${PIP[@]}" install --quiet -e ".[$EXTRAS]"
echo "done: $("$VENV/bin/python" -c "import importlib.metadata as m; print('est-ocp', m.version('est-ocp'), '| fairchem-core', m.version('fairchem-core'), '| torch', m.version('torch'))")"
