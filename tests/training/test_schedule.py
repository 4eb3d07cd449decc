import numpy as np
import pytest
import torch

from bitsweep.config.recipe import Recipe
from bitsweep.results import Splits
from bitsweep.training.loop import train
from bitsweep.training.schedule import LearningRate, build_optimizer


def recipe(**knobs: object) -> Recipe:
    return Recipe(**{"name": "test", "epochs": 4, "max_steps": 1000, "lr": 0.01, "device": "cpu", **knobs})  # type: ignore[arg-type]


def rates(steps: int, losses: list[float] | None = None, **knobs: object) -> list[float]:
    """Learning rates of the steps, with a validation loss after each of them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rate = LearningRate(optimizer, recipe(**knobs), steps=steps)
    seen = []
    for step in range(steps):
        seen.append(rate.value)
        optimizer.step()
        rate.after_step()
        if losses:
            rate.after_epoch(losses[step])
    return seen


def test_learning_rates_against_the_formulas() -> None:
    cosine = rates(100, schedule="cosine", warmup_share=0.1)
    assert cosine[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert cosine[10:] == pytest.approx((1 + np.cos(np.pi * np.arange(90) / 90)) / 2)

    onecycle = rates(100, schedule="onecycle", warmup_share=0.25)
    rise, fall = np.arange(1, 26) / 25, np.arange(75) / 75
    assert onecycle[:25] == pytest.approx(0.04 + 0.96 * (1 - np.cos(np.pi * rise)) / 2)
    assert onecycle[25:] == pytest.approx(4e-6 + (1 - 4e-6) * (1 + np.cos(np.pi * fall)) / 2)


def test_a_plateau_lowers_the_rate_after_epochs_in_vain() -> None:
    losses = [5.0, 4.0, 4.0, 4.5, 3.0, 3.5, 3.1, 3.2, 3.3, 2.0]
    knobs = {"schedule": "plateau", "plateau_patience": 2, "plateau_factor": 0.2}
    flat = rates(10, losses, warmup_share=0, **knobs)
    assert flat == pytest.approx([1, 1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.008])
    assert rates(10, [1.0] * 10, warmup_share=0.5, **knobs)[:3] == pytest.approx([0.2, 0.4, 0.6])


def test_an_average_takes_the_place_of_the_weights(digits: Splits) -> None:
    """Against the average written out, after every step of an epoch."""

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            super().step(closure)
            steps.append(network.weight.detach().clone())

    steps: list[torch.Tensor] = []
    torch.manual_seed(0)
    network = torch.nn.Linear(192, 10)
    whole = torch.nn.Sequential(torch.nn.Flatten(), network)
    average = network.weight.detach().clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Recorded)
        knobs = recipe(epochs=1, optimizer="sgd", ema_decay=0.8, lr=0.1)
        train(whole, digits, recipe=knobs, input_shape=(3, 8, 8), seed=0, title="a")
    assert len(steps) > 10
    for step, weight in enumerate(steps):
        decay = min(0.8, (1 + step) / (10 + step)) if step else 0.0
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(network.weight.detach(), average)
    assert not torch.allclose(steps[-1], average, rtol=1e-3)


def test_vectors_are_not_decayed() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    optimizer = build_optimizer(network, recipe(weight_decay=0.5), fused=False)
    decayed = {
        id(parameter) for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]
    }
    assert decayed == {id(parameter) for parameter in network.parameters() if parameter.ndim > 1}
