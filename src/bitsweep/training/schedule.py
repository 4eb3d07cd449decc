"""Optimisers, their learning rates, and averages of what they find."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bitsweep.config.recipe import Recipe
from bitsweep.training.network import split_parameters


def build_optimizer(network: nn.Module, recipe: Recipe, *, fused: bool, head: str = "") -> torch.optim.Optimizer:
    """The recipe's optimiser; biases and normalisation weights (all vectors) are not decayed.

    Every group of parameters knows its ``peak_lr``, which is lower for what is not within the head, if one is given.
    """
    parts = zip(split_parameters(network, head), (recipe.lr, recipe.lr * recipe.backbone_lr_factor), strict=True)
    groups = [
        {
            "params": [each for each in part if (each.ndim > 1) == decayed],
            "peak_lr": lr,
            "lr": lr,
            "weight_decay": decay,
        }
        for part, lr in parts
        for decayed, decay in ((True, recipe.weight_decay), (False, 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=fused)


def lr_factor(step: int, steps: int, recipe: Recipe, val_losses: Sequence[float] = ()) -> float:
    """Learning rate of a step relative to its peak.

    ``cosine``: linear from 0 over the warm-up, then (1 + cos(pi t)) / 2 for t from 0 to 1 (arXiv 1608.03983).
    ``onecycle``: cosine from 1/25 up over the warm-up, then cosine down to 1/250,000 (arXiv 1708.07120).
    ``plateau``: linear from 0 over the warm-up, then ``plateau_factor`` ** n after n times of waiting in vain.

    Args:
        val_losses: of the epochs before.
    """
    warmup = max(1, round(recipe.warmup_share * steps))
    rise = min(1.0, (step + 1) / warmup)
    if recipe.schedule == "plateau":
        return rise * recipe.plateau_factor ** waited_in_vain(val_losses, recipe.plateau_patience)
    fall = (1 + math.cos(math.pi * min(1.0, max(0, step - warmup) / max(1, steps - warmup)))) / 2
    if recipe.schedule == "cosine":
        return rise if step < warmup else fall
    floor, start = 1 / 250_000, 1 / 25
    if step < warmup:
        return start + (1 - start) * (1 - math.cos(math.pi * rise)) / 2
    return floor + (1 - floor) * fall


def waited_in_vain(losses: Sequence[float], patience: int) -> int:
    """How often so many epochs have passed without a lower loss than the lowest, each time counted anew."""
    times = waited = 0
    lowest = math.inf
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        if waited == patience:
            times, waited = times + 1, 0
    return times


@torch.no_grad()
def blend(average: dict[str, Tensor], state: Mapping[str, Tensor], share: float) -> None:
    """Move an average towards a state: a + share (s - a); counters are taken as they are."""
    for name, value in state.items():
        if value.is_floating_point():
            average[name].lerp_(value, share)
        else:
            average[name].copy_(value)


def ema_share(step: int, decay: float) -> float:
    """Share of the newest weights in their average: 1 - min(decay, (1 + t) / (10 + t)); the start is soon forgotten."""
    return 1 - min(decay, (1 + step) / (10 + step))
