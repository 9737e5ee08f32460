"""What replays of training steps do, without a GPU: the same passes on the same padded tensors."""

from __future__ import annotations

import torch

from est_ocp.models import captured_training
from est_ocp.models.captured_step import CapturedStep
from est_ocp.models.captured_training import CapturedSteps


class OnCpu(CapturedSteps):
    """Graphs of a model's steps; as in memory that they share, only the last pass's is there.

    Parameters
    ----------
    model : ESTHydraModel
    mode : str
    """

    def __init__(self, model, mode: str = "training") -> None:
        super().__init__(mode)
        self.model = model
        self.last: CapturedStep | None = None

    def wanted(self, data) -> bool:
        return self.mode in ("training", "always")

    def _record(self, step, forward) -> None:
        step.run(forward)
        step.run_forward(forward)
        step.run_backward()
        step.keep()

        def replay_forward() -> None:
            self.last = step
            with (
                torch.enable_grad(),
                captured_training._batch_unseen(self.model.backbone),
                captured_training._real_rows(self.model, step.rows),
            ):
                step.run_forward(forward)
            for kept, new in zip(step.outputs, step._live, strict=True):
                kept.copy_(new.detach())

        def replay_backward() -> None:
            assert self.last is step, "its activations are overwritten"
            step.run_backward()

        step.replay_forward, step.replay_backward = replay_forward, replay_backward


class Failing(OnCpu):
    """Steps that cannot be captured."""

    def _record(self, step, forward) -> None:
        raise RuntimeError("called a synchronizing CUDA operation\nmore")
