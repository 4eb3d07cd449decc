"""Optimisers, their learning rates, and averages of what they find."""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from bitsweep.config.recipe import Recipe
from bitsweep.training.network import split_parameters


def build_optimizer(network: nn.Module, recipe: Recipe, *, fused: bool, head: str = "") -> torch.optim.Optimizer:
    """The recipe's optimiser; biases and normalisation weights (all vectors) are not decayed.

    The learning rate is lower for what is not within the head, if one is given.
    """
    parts = zip(split_parameters(network, head), (recipe.lr, recipe.lr * recipe.backbone_lr_factor), strict=True)
    groups = [
        {
            "params": [each for each in part if (each.ndim > 1) == decayed],
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


class LearningRate:
    """The learning rate of an optimiser, set before every step by the schedule of a recipe.

    ``plateau`` rises linearly over the warm-up, and is multiplied by ``plateau_factor`` each time that
    ``plateau_patience`` epochs have passed without a lower validation loss.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, *, steps: int) -> None:
        warmup = max(1, round(recipe.warmup_share * steps))
        self._on_epoch: ReduceLROnPlateau | None = None
        self._on_step: LRScheduler
        if recipe.schedule == "plateau":
            self._on_step = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(1, warmup - 1))
            patience = recipe.plateau_patience - 1
            self._on_epoch = ReduceLROnPlateau(
                optimizer, factor=recipe.plateau_factor, patience=patience, threshold=0, eps=0
            )
        else:
            shape = cosine if recipe.schedule == "cosine" else one_cycle
            self._on_step = LambdaLR(optimizer, functools.partial(shape, steps=steps, warmup=warmup))
        self._optimizer = optimizer

    @property
    def value(self) -> float:
        """The highest of the groups of parameters."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def after_step(self) -> None:
        """Set the rate of the next step."""
        self._on_step.step()

    def after_epoch(self, val_loss: float) -> None:
        """Take notice of a validation loss."""
        if self._on_epoch is not None:
            self._on_epoch.step(val_loss)

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from."""
        return {"step": self._on_step.state_dict(), "epoch": self._on_epoch and self._on_epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; the optimiser's own state is loaded apart."""
        self._on_step.load_state_dict(state["step"])
        if self._on_epoch is not None:
            self._on_epoch.load_state_dict(state["epoch"])


def cosine(step: int, *, steps: int, warmup: int) -> float:
    """Learning rate relative to its peak: linear from 0 over the warm-up, then (1 + cos(pi t)) / 2 for t from 0 to 1.

    Paper: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (arXiv 1608.03983).
    """
    return (step + 1) / warmup if step < warmup else _falling(step, steps, warmup)


def one_cycle(step: int, *, steps: int, warmup: int) -> float:
    """Learning rate relative to its peak: cosine from 1/25 up over the warm-up, then cosine down to 1/250,000.

    Paper: Smith and Topin, "Super-Convergence" (arXiv 1708.07120).
    """
    floor, start = 1 / 250_000, 1 / 25
    if step < warmup:
        return start + (1 - start) * (1 - math.cos(math.pi * (step + 1) / warmup)) / 2
    return floor + (1 - floor) * _falling(step, steps, warmup)


def _falling(step: int, steps: int, warmup: int) -> float:
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))) / 2


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential average of everything that a network holds; counters are taken as they are.

    After t updates an average keeps min(decay, (1 + t) / (10 + t)) of itself: the start is soon forgotten.
    """

    def blend(average: Tensor, newest: Tensor, updates: Tensor | int) -> Tensor:
        share = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        return average.lerp(newest, share) if average.is_floating_point() else newest

    return AveragedModel(network, avg_fn=blend, use_buffers=True)
