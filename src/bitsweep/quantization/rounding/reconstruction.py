"""Learned rounding: whether each weight goes up or down is chosen so that the output of a unit is reconstructed.

Papers: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568), for a layer;
Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction" (arXiv 2102.05426), for a
block.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bitsweep.config.precision import Grid
from bitsweep.quantization.layerwise import UnitInputs, evaluate
from bitsweep.quantization.weights import Codes

#: The rectified sigmoid reaches from GAMMA to ZETA before it is clamped to [0, 1].
GAMMA, ZETA = -0.1, 1.1


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the rounding of a unit is learned.

    Attributes:
        iterations, batch, lr: of Adam, on random images.
        warmup_share: part of the iterations without the regulariser.
        regularization: weight of the regulariser, lambda.
        beta: its exponent at the start and at the end, annealed along a cosine.
    """

    iterations: int
    batch: int = 32
    lr: float = 0.01
    warmup_share: float = 0.2
    regularization: float = 0.01
    beta: tuple[float, float] = (20.0, 2.0)


class SoftRounding:
    """Weights of one layer that lie between two neighbouring codes, at a share that is learned.

    W^ = s (clamp(floor(W / s) + h(V) + z, lo, hi) - z) with h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1), which starts
    where W^ = W.
    """

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        shape = (-1, *[1] * (weight.ndim - 1)) if scale.ndim else ()
        self.scale, self.zero_point, self.grid = scale.reshape(shape), zero_point.reshape(shape), grid
        self._qparams = scale, zero_point
        self.floor = torch.floor(weight / self.scale)
        share = (weight / self.scale - self.floor).clamp(1e-4, 1 - 1e-4)
        self.v = torch.logit((share - GAMMA) / (ZETA - GAMMA)).requires_grad_()

    @property
    def up(self) -> Tensor:
        """h(V), the share in [0, 1] by which each weight is rounded up."""
        return (torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def weight(self, up: Tensor) -> Tensor:
        """W^ for the given shares."""
        return (self._codes(up) - self.zero_point) * self.scale

    def codes(self) -> Codes:
        """Every weight rounded to where its share is nearer."""
        scale, zero_point = self._qparams
        return Codes.from_float(self._codes((self.up.detach() >= 0.5).float()), scale, zero_point, self.grid)

    def _codes(self, up: Tensor) -> Tensor:
        return (self.floor + up + self.zero_point).clamp(self.grid.lo, self.grid.hi)


def reconstruct(
    given: UnitInputs, soft: Mapping[str, SoftRounding], schedule: Schedule, generator: torch.Generator
) -> dict[str, Codes]:
    """Learn the rounding of a unit's layers.

    Minimises, over random images, the mean over images and positions of ||f(X) - f^(X~)||^2, summed over channels, plus
    lambda sum(1 - |2 h - 1|^beta), where f is the float unit on the float network's inputs X, and f^ the unit with
    softly rounded weights on outputs of the network rounded so far.

    Args:
        soft: by the path of the weights, for every layer of the unit.
    """
    targets = torch.cat(given.outputs())
    inputs = {node: torch.cat(batches) if torch.is_tensor(batches[0]) else batches[0]
              for node, batches in given.rounded_inputs.items()}  # fmt: skip
    optimizer = torch.optim.Adam([each.v for each in soft.values()], lr=schedule.lr)
    warmup = schedule.warmup_share * schedule.iterations
    start, end = schedule.beta
    with torch.enable_grad():
        for iteration in range(schedule.iterations):
            chosen = torch.randint(len(targets), (min(schedule.batch, len(targets)),), generator=generator)
            shares = {path: each.up for path, each in soft.items()}
            weights = {path: each.weight(shares[path]) for path, each in soft.items()}
            yielded = evaluate(given.unit.nodes, _take(inputs, chosen), {**given.originals, **weights})
            loss = (yielded - targets[chosen]).square().sum(1).mean()
            if iteration >= warmup:
                t = (iteration - warmup) / max(1, schedule.iterations - warmup)
                beta = end + (start - end) * (1 + math.cos(math.pi * t)) / 2
                for share in shares.values():
                    loss = loss + schedule.regularization * (1 - (2 * share - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return {path: each.codes() for path, each in soft.items()}


def _take(inputs: Mapping[Node, Any], chosen: Tensor) -> dict[Node, Any]:
    """Some images of a unit's inputs; sizes of the batch become theirs."""
    return {node: value[chosen] if torch.is_tensor(value) else len(chosen) for node, value in inputs.items()}
