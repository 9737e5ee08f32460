"""Config groups and shared configs; Hydra finds them as ``pkg://est_ocp.configs``."""

from __future__ import annotations

from est_ocp.config_keys import register

register()
