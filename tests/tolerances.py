"""Tolerances of the tests, by name, in one place."""

from __future__ import annotations

import torch

#: Largest accepted absolute error of an exact identity on inputs of order one.
TOL: dict[torch.dtype, float] = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}

#: Recorded originals (float32): one block from its recorded input / a whole network.
PARITY_BLOCK = 2e-5
PARITY_NETWORK = 1e-4

#: Equiformer's recorded blocks, difference relative to the largest recorded value.
PARITY_EQUIFORMER = 1e-5

#: Batched against single evaluation.
BATCH: dict[torch.dtype, float] = {torch.float64: 1e-10, torch.float32: 2e-5}

#: Norm of the change of small models under bfloat16 autocast, relative to the norm of the output.
BF16_RELATIVE = 3e-2

#: GotenNet's recorded layers and whole network in float32: largest absolute difference, and in
#: units of the largest recorded value where that is below one.
PARITY_GOTENNET = 1e-5

#: Strictly equivariant layers in float64, one layer on inputs of order one.
STRICT = 1e-10

#: Change of the energy an atom (of order 0.1, float64) under symmetries that hold to rounding.
INVARIANCE_EXACT = 1e-10

#: The same under rotation where nonlinearities act on 194 points of the sphere.
INVARIANCE_SAMPLED = 1e-6

#: Directional derivative against central differences, relative to one plus its value, float64.
NUMERICAL_GRADIENT = 1e-5

#: Two ranks against one with twice the batch, float64, relative, after a few steps.
PARALLEL = 1e-10
