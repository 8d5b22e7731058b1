"""Muon for many small matrices: torch's optimiser, but matrices of one shape are updated together.

torch.optim.Muon goes through the matrices one by one, about 25 small launches each, and the tiny model has 54: the host
could not launch them as fast as a GPU does the rest of a step.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class BatchedMuon(torch.optim.Muon):
    """The state and, up to rounding, the updates of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every matrix that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                self._update(shape, parameters, group)
        return loss

    def _update(self, shape: torch.Size, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
        updates = _orthogonalise(torch.stack(list(ahead)), group["ns_coefficients"], group["ns_steps"], group["eps"])
        # Of the size of AdamW's updates (Muon is Scalable for LLM Training, arXiv 2502.16982, section 2.2).
        size = 0.2 * max(shape) ** 0.5
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype).unbind()), alpha=-group["lr"] * size)


def _orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Roughly U V^T of each matrix U S V^T of a stack [n, rows, columns], by a quintic Newton-Schulz iteration in
    bfloat16 (Jordan et al., "Muon: An optimizer for hidden layers in neural networks")."""
    a, b, c = coefficients
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.mT
