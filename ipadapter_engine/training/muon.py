"""Muon: momentum whose every direction counts alike (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

A matrix's momentum is replaced by the nearest orthogonal matrix, found by Newton and Schulz' iteration: what the
gradient hardly shows, such as a rare word's colour, is learnt as fast as what it shows loudly. The step is scaled to the size
of AdamW's (Liu et al., 2025, arXiv:2502.16982, sec. 2.2), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ipadapter_engine.training.precision import quickest_precision

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAMW_RMS = 0.2  # of a usual step of AdamW, in learning rates
_SMALLEST_SIDE = 32  # of what counts as a matrix


class Muon(torch.optim.AdamW):
    """Linear layers with sides of 32 or more by Muon, all else by AdamW: the iteration on a network's convolutions would
    take a third of a step on a CPU."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        given = list(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in given if is_matrix(p) is matrices], "matrices": matrices}
            for matrices in (True, False)
        ]
        super().__init__([g for g in groups if g["params"]], lr=lr, betas=betas, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The gradients of the matrices are used up."""
        for group in (g for g in self.param_groups if g["matrices"]):
            for p in group["params"]:
                if p.grad is not None:
                    self._turn(p, p.grad, group)
                    p.grad = None  # AdamW passes over it
        return super().step(closure)

    def _turn(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
            state["step"] = torch.zeros(())  # AdamW looks for it where a state is loaded
        keep = 0.95
        state["momentum"].lerp_(gradient, 1 - keep)
        step = orthogonalised(gradient.lerp(state["momentum"], keep))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(step.to(p.dtype), alpha=-group["lr"] * _ADAMW_RMS * max(p.shape) ** 0.5)


def is_matrix(p: Tensor) -> bool:
    return p.ndim == 2 and min(p.shape) >= _SMALLEST_SIDE


def orthogonalised(matrix: Tensor) -> Tensor:
    """(rows, columns) -> the same shape with singular values near 1, between about 0.7 and 1.2; in bf16 where that is quick."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    if quickest_precision(matrix.device.type) == "bf16":
        x = x.bfloat16()
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
