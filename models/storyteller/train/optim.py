"""Muon for the matrices, Adam for the rest.

Muon replaces each matrix's momentum by the nearest orthogonal matrix, found by five Newton-Schulz steps
(Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/). The update is scaled to the root mean
square that Adam's would have (Liu et al., 2025, arXiv:2502.16982), so that one learning rate has one meaning.
"""

import torch
from torch import Tensor


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """About U·Vᵀ for g = U·S·Vᵀ. g: (n, rows, columns), a stack of matrices of one shape."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).to(torch.bfloat16)
    for _ in range(steps):
        outer = x @ x.mT
        polynomial = torch.baddbmm(outer, outer, outer, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. Matrices of one shape are handled as one stack."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._step_stack(params, group)

    def _step_stack(self, params: list[Tensor], group: dict) -> None:
        directions = []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(state["momentum"], group["momentum"]))  # Nesterov
        rms = 0.2 * max(params[0].shape) ** 0.5
        for p, update in zip(params, orthogonal(torch.stack(directions))):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"] * rms)


def make_optimisers(model: torch.nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the layers' matrices; Adam on the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n != "token_embd"]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or n == "token_embd"]
    return [
        Muon(matrices, lr=muon_lr),
        torch.optim.Adam(others, lr=adam_lr, betas=(0.9, 0.98), eps=1e-10, fused=True),
    ]
