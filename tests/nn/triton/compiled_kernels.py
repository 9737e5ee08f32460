"""Compile the kernels that a training step of a model starts for GPUs that are not here.

    python -m tests.nn.triton.compiled_kernels 80 bfloat16

The step runs on the CPU and takes its tensors for those of a GPU; every kernel is compiled with the
arguments of its start, and is not run, so that the results are memory as it was found. Prints for
each kernel the bytes of shared memory that it needs.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from est_ocp.nn import edge_rows, fused_feature
from est_ocp.nn.triton import spherical_experts
from tests.models import systems
from tests.nn.triton.programs import SHARED_MEMORY


def slabs() -> Any:
    """Two slabs."""
    return systems.collate([systems.slab(), systems.slab(seed=1)], torch.float32)


def molecules() -> Any:
    """Two molecules."""
    return systems.collate([systems.molecule("CH3CH2OH"), systems.water()], torch.float32)


S2EF = ("model=est_s2ef_8layer", "model.backbone.num_layers=1")
POINTS = "model.backbone.update.rule={{kind: lebedev, num_points: {}}}"
#: Config, overrides and batches: a layer of each model whose kernels differ. Experts have a kernel
#: of their own where features are made at all points.
MODELS = {
    "s2ef": ("train_s2ef", S2EF, slabs),
    "s2ef_86": ("train_s2ef", (*S2EF, POINTS.format(86)), slabs),
    "s2ef_points": ("train_s2ef", (*S2EF, "model.backbone.update.factored=false"), slabs),
    "is2re": ("train_is2re", ("model=est_is2re_6layer", "model.backbone.num_layers=1"), slabs),
    "qm9_est": ("train_qm9", ("model=qm9_est", "model.backbone.num_layers=1"), molecules),
    "gotennet": ("train_qm9", ("model=qm9_est_gata", "model.backbone.num_layers=2"), molecules),
}


class AbsentGPU:
    """What Triton asks of a driver before it compiles.

    Parameters
    ----------
    capability : int
        Of the GPU, 80 for an A100.
    """

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """For what is compiled."""
        return self.target

    def get_current_device(self) -> int:
        """Its number."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Nothing runs on it."""
        return 0


def main(capability: int, dtype: torch.dtype) -> None:
    """Compile what a training step of every model starts in one precision."""
    compiled = []
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *arguments: Any, **named: Any) -> None:
        made = run(kernel, *arguments, **named | {"warmup": True})
        compiled.append((kernel.fn.__module__, kernel.fn.__name__, made.metadata.shared))

    driver.set_active(AbsentGPU(capability))
    JITFunction.run = compile_only
    torch.Tensor.is_cuda = property(lambda tensor: True)
    for module in (edge_rows, fused_feature):
        module.shared_memory = lambda device: 1024 * SHARED_MEMORY[capability]
    # The one product that the CPU does not have in the form for GPUs.
    spherical_experts._add_product = lambda total, a, b: None
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, (config, words, batch) in MODELS.items():
        with initialize_config_module("est_ocp.configs", version_base=None):
            model = instantiate(compose(config, [*words, "++model.cuda_graphs=never"]).model)
        compiled.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype.itemsize == 2):
            out = model.train()(batch())
        loss = sum(v.float().sum() for value in out.values() for v in value.values())
        loss.backward()
        for module, kernel, shared in sorted(set(compiled)):
            print(f"{name}.{module.rpartition('.')[2]}.{kernel} {shared}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]))
