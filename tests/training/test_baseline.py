import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model
from bitsweep.config.recipe import Recipe
from bitsweep.data.preprocessing import preprocess
from bitsweep.data.splits import load_splits, make_splits
from bitsweep.data.stored_images import StoredImages
from bitsweep.datasets.digits import Digits
from bitsweep.errors import CellFailed, ConfigError, DataError
from bitsweep.results import Split, Splits
from bitsweep.training import baseline, loop
from bitsweep.training.trained import load_trained
from tests.devices import each_device, on_a_gpu


@configurable
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


class Viewing(torch.nn.Module):
    """Asks for a view that features have only where channels lie apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(channels, 4, 3)
        self.head = torch.nn.Linear(4 * 6 * 6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        return self.head(features.view(len(features), -1))


class _Thirds(torch.nn.Module):
    """A third of what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :10]


def recipe(**knobs: object) -> Recipe:
    return Recipe(**{"name": "test", "epochs": 4, "max_steps": 1000, "lr": 0.01, "device": "cpu", **knobs})  # type: ignore[arg-type]


@each_device
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_laid_out_as_a_network_takes_them(channels: int, device: str) -> None:
    """Also those of one channel, which PyTorch calls contiguous in both layouts, whatever their strides."""
    fastest = torch.contiguous_format if device == "cpu" else torch.channels_last
    for network, expected in (
        (torch.nn.Conv2d(channels, 4, 3), (fastest, torch.channels_last)),
        (Viewing(channels), (torch.contiguous_format, torch.contiguous_format)),
    ):
        network.to(device)
        layouts = [
            loop.memory_format(network, (channels, 8, 8), torch.device(device), learns=learns)
            for learns in (True, False)
        ]
        assert tuple(layouts) == expected


@pytest.mark.parametrize(
    "knobs",
    [
        pytest.param({}, id="cpu"),
        pytest.param({"device": "cuda"}, id="cuda", marks=[pytest.mark.slow, on_a_gpu]),
        pytest.param(
            {"device": "cuda", "autocast": "float16", "compile": "never", "augment": "shift", "ema_decay": 0.9},
            id="cuda in float16",
            marks=[pytest.mark.slow, on_a_gpu],
        ),
    ],
)
def test_it_learns_and_keeps_the_best_epoch(knobs: dict[str, object], digits: Splits, tmp_path: Path) -> None:
    """And writes logits that are float32's, which on a GPU PyTorch would round."""
    baseline.fit(Small(), digits, recipe=recipe(**knobs), seed=0, folder=tmp_path)
    trained = load_trained(tmp_path)
    assert len(trained.history) == 4
    assert trained.best_epoch == np.argmin([epoch.val_loss for epoch in trained.history])
    network = Small().build(10)
    network.load_state_dict(torch.load(trained.checkpoint, weights_only=True))
    images = preprocess(digits.test.images, input_shape=(3, 8, 8), mean_C=digits.mean_C, std_C=digits.std_C)
    with torch.no_grad():
        logits = network.eval()(images).numpy()
    np.testing.assert_allclose(trained.test_logits_NK, logits, atol=1e-4)
    assert (logits.argmax(1) == digits.test.labels).mean() > 0.9


def test_images_are_trained_on_where_they_are_stored(digits: Splits, tmp_path: Path) -> None:
    for folder in ("store", "stored", "held"):
        (tmp_path / folder).mkdir()
    make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0, folder=tmp_path / "store")
    stored = load_splits(tmp_path / "store")
    assert isinstance(stored.train.images, StoredImages)
    quick = recipe(max_steps=5, augment="shift_flip")
    baseline.fit(Small(), stored, recipe=quick, seed=0, folder=tmp_path / "stored")
    baseline.fit(Small(), digits, recipe=quick, seed=0, folder=tmp_path / "held")
    logits = [load_trained(tmp_path / folder).test_logits_NK for folder in ("stored", "held")]
    assert np.array_equal(*logits)


def test_given_weights_are_the_baseline_as_they_are(digits: Splits, tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = Small().build(10)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    baseline.fit(Small(weights=str(tmp_path / "weights.pt")), digits, recipe=recipe(epochs=0), seed=0, folder=tmp_path)
    trained = load_trained(tmp_path)
    assert trained.history == ()
    images = preprocess(digits.val.images, input_shape=(3, 8, 8), mean_C=digits.mean_C, std_C=digits.std_C)
    with torch.no_grad():
        hits = network.eval()(images).argmax(1).numpy() == digits.val.labels
    assert np.array_equal(trained.validation_right_N, hits)
    assert trained.val_top1 == pytest.approx(hits.mean())
    for name, value in torch.load(trained.checkpoint, weights_only=True).items():
        assert torch.equal(value, network.state_dict()[name])


def test_a_network_that_yields_nan_is_no_baseline(digits: Splits, tmp_path: Path) -> None:
    class Rooted(Small):
        def build(self, num_classes: int) -> torch.nn.Module:
            return torch.nn.Sequential(*super().build(num_classes), torch.nn.LogSigmoid(), Root())

    class Root(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    weights = tmp_path / "weights.pt"
    torch.save(Rooted().build(10).state_dict(), weights)
    with pytest.raises(ConfigError, match=r"the fp32 network yields NaN for (\d+) of \1 test images"):
        baseline.fit(Rooted(weights=str(weights)), digits, recipe=recipe(epochs=0), seed=0, folder=tmp_path)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), "the logits carry no gradients"),
        (torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((10, 1)), torch.nn.Flatten(), _Thirds()), "no parameters to"),
    ],
)
def test_what_cannot_learn_is_refused(network: torch.nn.Module, message: str, digits: Splits, tmp_path: Path) -> None:
    @configurable
    class Stuck(Model):
        name: str = "stuck"
        image_size: int = 8

        def build(self, num_classes: int) -> torch.nn.Module:
            return network

    network.forward = torch.no_grad()(network.forward)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=f"{message}.*train=pretrained"):
        baseline.fit(Stuck(), digits, recipe=recipe(epochs=1), seed=0, folder=tmp_path)


def test_a_seed_is_a_result(digits: Splits, tmp_path: Path) -> None:
    logits = []
    for number, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        baseline.fit(Small(), digits, recipe=recipe(epochs=1, augment="shift_flip"), seed=seed, folder=folder)
        logits.append(load_trained(folder).test_logits_NK)
    assert np.array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])


def test_steps_are_bounded(digits: Splits, tmp_path: Path) -> None:
    baseline.fit(Small(), digits, recipe=recipe(epochs=50, max_steps=30, batch_size=64), seed=0, folder=tmp_path)
    epochs = json.loads((tmp_path / "history.json").read_text())["epochs"]
    assert len(epochs) == math.ceil(30 / (len(digits.train) // 64))
    assert epochs[-1]["lr"] == pytest.approx(0, abs=1e-12)


def test_it_stops_early(digits: Splits, tmp_path: Path) -> None:
    # With the last rates next to nothing, no epoch is better than one of the first.
    baseline.fit(Small(), digits, recipe=recipe(epochs=40, lr=1e-12, patience=2), seed=0, folder=tmp_path)
    assert len(load_trained(tmp_path).history) < 40


def test_divergence_is_named(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match=r"training diverged in epoch \d: loss .* lower learning rate than 1e\+20"):
        baseline.fit(Small(), digits, recipe=recipe(lr=1e20, optimizer="sgd", clip_norm=0), seed=0, folder=tmp_path)


def test_the_learning_rate_falls_on_a_plateau(digits: Splits, tmp_path: Path) -> None:
    plateau = recipe(schedule="plateau", warmup_share=0, plateau_patience=1, plateau_factor=0.1, epochs=6, lr=0.03)
    baseline.fit(Small(), digits, recipe=plateau, seed=0, folder=tmp_path)
    history = load_trained(tmp_path).history
    losses = [epoch.val_loss for epoch in history]
    in_vain = [loss >= min(losses[:epoch], default=loss + 1) for epoch, loss in enumerate(losses)]
    assert [epoch.lr for epoch in history] == pytest.approx(0.03 * 0.1 ** np.cumsum(in_vain))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.device=cuda: PyTorch sees no CUDA device"):
        loop.choose_device("cuda")


def test_a_baseline_without_training_images(digits: Splits, tmp_path: Path) -> None:
    """Given weights are as good as they are on the test images; nothing can be trained."""
    nothing = Split(images=digits.train.images[:0], labels=digits.train.labels[:0])
    alone = replace(digits, train=nothing, val=nothing, unlabelled=digits.val.images)
    torch.save(Small().build(10).state_dict(), tmp_path / "weights.pt")
    given = Small(weights=str(tmp_path / "weights.pt"))
    with pytest.raises(DataError, match="train=test trains, and there are no training images; use train=pretrained"):
        baseline.fit(given, alone, recipe=recipe(), seed=0, folder=tmp_path)
    baseline.fit(given, alone, recipe=recipe(epochs=0), seed=0, folder=tmp_path)
    trained = load_trained(tmp_path)
    assert (trained.val_top1, trained.history, len(trained.validation_right_N)) == (None, (), 0)
    assert trained.test_logits_NK.shape == (len(digits.test), 10)
    baseline.fit(given, digits, recipe=recipe(epochs=0), seed=0, folder=tmp_path)
    assert np.array_equal(load_trained(tmp_path).test_logits_NK, trained.test_logits_NK)


def test_large_images_are_classified_a_few_at_a_time() -> None:
    sizes = list[int]()

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return images.mean((2, 3))

    large = np.zeros((5, 1024, 1024, 3), np.uint8)
    for images, expected in ((large, [2, 2, 1]), (large[:, :8, :8], [5])):
        sizes.clear()
        split = Split(images=images, labels=np.zeros(5, np.int64))
        loop.compute_logits(Network(), split, lambda batch: batch.movedim(3, 1).float(), torch.device("cpu"))
        assert sizes == expected


@pytest.mark.parametrize(("epochs", "normalization"), [(0, "auto"), (0, "dataset"), (1, "auto")])
def test_given_weights_that_do_not_say_how_pixels_are_normalised_are_told(
    epochs: int, normalization: str, digits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Small().build(10).state_dict(), tmp_path / "given.pt")
    model = Small(weights=str(tmp_path / "given.pt"), normalization=normalization)  # type: ignore[arg-type]
    baseline.fit(model, digits, recipe=recipe(epochs=epochs), seed=0, folder=tmp_path)
    told = not epochs and normalization == "auto"
    assert ("model=small: its file does not say how it wants its pixels" in capsys.readouterr().out) == told
    assert len(load_trained(tmp_path).notes) == told
