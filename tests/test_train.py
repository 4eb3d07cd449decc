import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsweep import train
from bitsweep.artifacts import Splits
from bitsweep.axes import Model, Recipe, axis
from bitsweep.datasets.digits import Digits
from bitsweep.errors import CellFailed, ConfigError
from bitsweep.splits import load_splits, make_splits, preprocess


@axis
class Small(Model):
    """Two convolutions and a linear layer."""

    name: str = "small"
    image_size: int = 8

    def build(self, num_classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1),
            torch.nn.BatchNorm2d(16, momentum=0.001),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 16, 3, padding=1, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(256, num_classes),
        )


@pytest.fixture(scope="module")
def digits() -> Splits:
    return make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0)


def recipe(**knobs: object) -> Recipe:
    return Recipe(**{"name": "test", "epochs": 4, "max_steps": 1000, "lr": 0.01, "device": "cpu", **knobs})  # type: ignore[arg-type]


def test_it_learns_and_keeps_the_best_epoch(digits: Splits, tmp_path: Path) -> None:
    train.fit(Small(), digits, recipe=recipe(), seed=0, folder=tmp_path)
    trained = train.load_trained(tmp_path)
    assert len(trained.history) == 4
    assert trained.best_epoch == np.argmin([epoch.val_loss for epoch in trained.history])
    network = Small().build(10)
    network.load_state_dict(torch.load(trained.checkpoint, weights_only=True))
    images = preprocess(digits.test.images, image_size=8, mean_C=digits.mean_C, std_C=digits.std_C)
    with torch.no_grad():
        logits = network.eval()(images).numpy()
    np.testing.assert_allclose(trained.test_logits_NK, logits, atol=1e-3)
    assert (logits.argmax(1) == digits.test.labels).mean() > 0.9


def test_images_are_trained_on_where_they_are_stored(digits: Splits, tmp_path: Path) -> None:
    for folder in ("store", "stored", "held"):
        (tmp_path / folder).mkdir()
    make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0, folder=tmp_path / "store")
    stored = load_splits(tmp_path / "store")
    assert isinstance(stored.train.images, np.memmap)
    quick = recipe(max_steps=5, augment="shift_flip")
    train.fit(Small(), stored, recipe=quick, seed=0, folder=tmp_path / "stored")
    train.fit(Small(), digits, recipe=quick, seed=0, folder=tmp_path / "held")
    logits = [train.load_trained(tmp_path / folder).test_logits_NK for folder in ("stored", "held")]
    assert np.array_equal(*logits)


def test_given_weights_are_the_baseline_as_they_are(digits: Splits, tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = Small().build(10)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    train.fit(Small(weights=str(tmp_path / "weights.pt")), digits, recipe=recipe(epochs=0), seed=0, folder=tmp_path)
    trained = train.load_trained(tmp_path)
    assert trained.history == ()
    images = preprocess(digits.val.images, image_size=8, mean_C=digits.mean_C, std_C=digits.std_C)
    with torch.no_grad():
        hits = network.eval()(images).argmax(1).numpy() == digits.val.labels
    assert trained.val_top1 == pytest.approx(hits.mean())
    for name, value in torch.load(trained.checkpoint, weights_only=True).items():
        assert torch.equal(value, network.state_dict()[name])


def test_a_seed_is_a_result(digits: Splits, tmp_path: Path) -> None:
    logits = []
    for number, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        train.fit(Small(), digits, recipe=recipe(epochs=1, augment="shift_flip"), seed=seed, folder=folder)
        logits.append(train.load_trained(folder).test_logits_NK)
    assert np.array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])


def test_steps_are_bounded(digits: Splits, tmp_path: Path) -> None:
    train.fit(Small(), digits, recipe=recipe(epochs=50, max_steps=30, batch_size=64), seed=0, folder=tmp_path)
    epochs = json.loads((tmp_path / "history.json").read_text())["epochs"]
    assert len(epochs) == math.ceil(30 / (len(digits.train) // 64))
    assert epochs[-1]["lr"] == pytest.approx(0, abs=1e-12)


def test_it_stops_early(digits: Splits, tmp_path: Path) -> None:
    # With the last rates next to nothing, no epoch is better than one of the first.
    train.fit(Small(), digits, recipe=recipe(epochs=40, lr=1e-12, patience=2), seed=0, folder=tmp_path)
    assert len(train.load_trained(tmp_path).history) < 40


def test_divergence_is_named(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match=r"training diverged in epoch \d: loss .* lower learning rate than 1e\+20"):
        train.fit(Small(), digits, recipe=recipe(lr=1e20, optimizer="sgd", clip_norm=0), seed=0, folder=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.device=cuda: PyTorch sees no CUDA device"):
        train.choose_device("cuda")


def test_learning_rates_against_the_formulas() -> None:
    cosine = [train.lr_factor(step, 100, recipe(schedule="cosine", warmup_share=0.1)) for step in range(101)]
    assert cosine[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert cosine[10:] == pytest.approx((1 + np.cos(np.pi * np.arange(91) / 90)) / 2)

    onecycle = [train.lr_factor(step, 100, recipe(schedule="onecycle", warmup_share=0.25)) for step in range(101)]
    rise, fall = np.arange(1, 26) / 25, np.arange(76) / 75
    assert onecycle[:25] == pytest.approx(0.04 + 0.96 * (1 - np.cos(np.pi * rise)) / 2)
    assert onecycle[25:] == pytest.approx(4e-6 + (1 - 4e-6) * (1 + np.cos(np.pi * fall)) / 2)


def test_a_plateau_against_torch() -> None:
    losses = [5.0, 4.0, 4.0, 4.5, 3.0, 3.5, 3.1, 3.2, 3.3, 2.0]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.2, patience=1, threshold=0)
    knobs = recipe(schedule="plateau", warmup_share=0, plateau_patience=2, plateau_factor=0.2)
    for count, loss in enumerate(losses, 1):
        expected.step(loss)
        factor = train.lr_factor(50, 100, knobs, losses[:count])
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
    assert train.waited_in_vain(losses, 2) == 3


def test_the_learning_rate_falls_on_a_plateau(digits: Splits, tmp_path: Path) -> None:
    plateau = recipe(schedule="plateau", warmup_share=0, plateau_patience=1, plateau_factor=0.1, epochs=6, lr=0.03)
    train.fit(Small(), digits, recipe=plateau, seed=0, folder=tmp_path)
    history = train.load_trained(tmp_path).history
    losses = [epoch.val_loss for epoch in history]
    assert [epoch.lr for epoch in history] == pytest.approx(
        [0.03 * 0.1 ** train.waited_in_vain(losses[: count + 1], 1) for count in range(len(history))]
    )


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
        train.descend(whole, digits, recipe=knobs, image_size=8, seed=0, title="a")
    assert len(steps) > 10
    for step, weight in enumerate(steps):
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(network.weight.detach(), average)
    assert not torch.allclose(steps[-1], average, rtol=1e-3)


def test_vectors_are_not_decayed() -> None:
    network = Small().build(10)
    optimizer = train.build_optimizer(network, recipe(weight_decay=0.5), fused=False)
    decayed = {
        id(parameter) for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]
    }
    assert decayed == {id(parameter) for parameter in network.parameters() if parameter.ndim > 1}


def test_augmentation_moves_whole_images() -> None:
    images = torch.arange(16 * 16, dtype=torch.int16).reshape(1, 16, 16, 1).repeat(200, 1, 1, 1)
    moved = train.augment(images, "shift", torch.Generator().manual_seed(0))
    inner = moved[:, 2:-2, 2:-2, 0]
    offsets = inner[:, 0, 0] - images[0, 2, 2, 0]
    down = torch.div(offsets + 8, 16, rounding_mode="floor")
    right = offsets - 16 * down
    assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2}
    assert (inner - offsets[:, None, None] == images[0, 2:-2, 2:-2, 0]).all()
    mirrored = train.augment(images, "shift_flip", torch.Generator().manual_seed(0))
    decreasing = (mirrored[:, 8, 8, 0] < mirrored[:, 8, 7, 0]).double().mean()
    assert 0.35 < decreasing < 0.65
    assert train.augment(images, "none", torch.Generator()) is images
