"""Processes that train together, against one that does it alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model
from bitsweep.config.recipe import Recipe
from bitsweep.errors import CellFailed, ConfigError
from bitsweep.results import Split, Splits
from bitsweep.runtime import child
from bitsweep.runtime.progress import Progress
from bitsweep.training.baseline import fit
from bitsweep.training.trained import load_trained


class WithAuxiliaryHead(nn.Sequential):
    """Layers, the last of them the head, and another head that yields something in training alone."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.auxiliary = nn.Linear(72, 2)

    def forward(self, images: torch.Tensor) -> Any:
        *layers, head, auxiliary = self
        features = nn.Sequential(*layers)(images)
        return (head(features), auxiliary(features)) if self.training else head(features)


@configurable
class Normalised(Model):
    """Convolutions with normalisation, and heads."""

    name: str = "normalised"
    image_size: int = 8

    def build(self, num_classes: int) -> nn.Module:
        return WithAuxiliaryHead(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(72, num_classes),
        )


def recipe(**knobs: object) -> Recipe:
    settings = {
        "name": "test", "epochs": 3, "max_steps": 1000, "lr": 0.05, "device": "cpu", "optimizer": "sgd",
        "augment": ["shift_flip", {"RandomRotation": {"degrees": 9}}], "ema_decay": 0.5, "label_smoothing": 0.1,
    }  # fmt: skip
    return Recipe(**(settings | knobs))  # type: ignore[arg-type]


def train(*, splits: Splits, recipe: Recipe, seed: int, folder: Path, progress: Progress, rank: int = 0) -> None:
    torch.set_num_threads(1)
    unfinished = folder.with_suffix(".unfinished")
    fit(Normalised(), splits, recipe=recipe, seed=seed, folder=folder, rank=rank, unfinished=unfinished)


def trained(splits: Splits, folder: Path, knobs: Recipe) -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    """Losses of every epoch, logits, and weights."""
    folder.mkdir()
    given = {"splits": splits, "recipe": knobs, "seed": 3}
    child.call(train, given, folder=folder, log=folder / "log.txt", processes=knobs.devices)
    made = load_trained(folder)
    assert ["auxiliary has no part in the logits" in note for note in made.notes] == [True]
    losses = np.array([(epoch.train_loss, epoch.val_loss, epoch.val_top1) for epoch in made.history])
    return losses, made.test_logits_NK, torch.load(made.checkpoint, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [{}, {"frozen_epochs": 1, "batch_size": 90}], ids=["all", "first the head"])
def test_two_processes_learn_what_one_does(digits: Splits, tmp_path: Path, knobs: dict[str, int]) -> None:
    losses, logits, state = trained(digits, tmp_path / "one", recipe(**knobs))
    joint_losses, joint_logits, joint_state = trained(digits, tmp_path / "two", recipe(**knobs, devices=2))
    np.testing.assert_allclose(joint_losses, losses, rtol=1e-3)
    np.testing.assert_allclose(joint_logits, logits, atol=0.02)
    assert state.keys() == joint_state.keys()
    for name, value in state.items():
        torch.testing.assert_close(joint_state[name], value, rtol=0.01, atol=1e-3, msg=name)
    assert losses[0, 0] > 1.05 * losses[-1, 0]


@pytest.mark.slow
def test_the_figures_do_not_depend_on_luck(digits: Splits, tmp_path: Path) -> None:
    """Half the batches, or statistics of half the images, would be seen in the losses."""
    losses = trained(digits, tmp_path / "one", recipe())[0]
    others = trained(digits, tmp_path / "other", recipe(batch_size=32))[0]
    assert not np.allclose(losses, others, rtol=1e-2)


def test_shares_are_equal() -> None:
    with pytest.raises(ValueError, match="devices=3: must divide batch_size=64"):
        recipe(devices=3)


@pytest.mark.slow
def test_there_are_images_for_all(digits: Splits, tmp_path: Path) -> None:
    one = Split(images=digits.train.images[:1], labels=digits.train.labels[:1])
    few = replace(digits, train=one)
    with pytest.raises(ConfigError, match=r"train\.devices=2: there are 1 training images"):
        trained(few, tmp_path / "few", recipe(devices=2))


def fail_or_wait(*, folder: Path, progress: Progress, rank: int) -> None:
    import os
    import time

    if rank == 1:
        os._exit(3)
    time.sleep(60)


def test_all_end_when_one_does(tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match="fail or wait ended the process with exit code 3"):
        child.call(fail_or_wait, folder=tmp_path, log=tmp_path / "log.txt", processes=2)
