"""Real pretrained weights with depthwise convolutions: naive rounding ruins them, and the guard keeps them."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitsweep.config.precision import Grid, Scheme
from bitsweep.data.preprocessing import normalized_for_imagenet, preprocessed
from bitsweep.data.splits import make_splits
from bitsweep.graphs.program import logits_of
from bitsweep.measuring.causes import why_less_accurate
from bitsweep.models.torchvision import TorchvisionModel
from bitsweep.results import Array, Compression, RawData, RawSplit, Splits
from bitsweep.training.network import load_weights
from tests.methods.test_rounding import method

pytestmark = pytest.mark.slow

SIZE = 224
ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)


def _split(folder: Path) -> RawSplit:
    """Photographs squeezed into squares, as the network was trained on them."""
    files = sorted(folder.glob("*/*.jpg"))
    pixels = [
        np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for file in files
    ]
    return RawSplit(images=np.stack(pixels), labels=np.array([file.parent.name == "dogs" for file in files], np.int64))


@functools.cache
def _splits(sample_data: Path) -> Splits:
    raw = RawData(
        train=_split(sample_data / "cats_dogs" / "training_set"),
        test=_split(sample_data / "cats_dogs_more" / "test_set"),
        classes=("cats", "dogs"),
    )
    return normalized_for_imagenet(make_splits(raw, val_share=0.1, seed=0))


def _network(sample_data: Path) -> torch.nn.Module:
    model = TorchvisionModel(name="mobilenetv3", builder="mobilenet_v3_small", image_size=SIZE)
    network = model.build(2)
    load_weights(network, sample_data / "weights" / "mobilenetv3_small_cats_dogs_fp16.pt")
    return network.eval()


def _compressed(sample_data: Path, name: str, *, bits: int, fuses_functions: bool, **knobs: object) -> Compression:
    weights = Grid(bits=bits, signed=True, symmetric=True, per_channel=True)
    scheme = Scheme(weights=weights, activations=ACTIVATIONS, arithmetic="integer", fuses_functions=fuses_functions)
    return method(name, calibration_images=96, **knobs).compress(
        _network(sample_data), _splits(sample_data), input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0
    )


def _correct(compression: Compression, sample_data: Path) -> int:
    splits = _splits(sample_data)
    batches = (
        batch.numpy() for batch in preprocessed(splits.test.images, splits, input_shape=(3, SIZE, SIZE), batch=50)
    )
    logits: Array = logits_of(compression.program, batches)
    return int((logits.argmax(1) == splits.test.labels).sum())


@functools.cache
def _correct_in_float(sample_data: Path) -> int:
    splits, network = _splits(sample_data), _network(sample_data)
    with torch.no_grad():
        batches = preprocessed(splits.test.images, splits, input_shape=(3, SIZE, SIZE), batch=50)
        logits = torch.cat([network(batch) for batch in batches]).numpy()
    return int((logits.argmax(1) == splits.test.labels).sum())


@pytest.mark.parametrize(("bits", "fuses_functions"), [(8, False), (7, False), (8, True)])
def test_the_default_keeps_within_a_point_of_the_float_network(
    sample_data: Path, bits: int, fuses_functions: bool
) -> None:
    compression = _compressed(sample_data, "ptq", bits=bits, fuses_functions=fuses_functions)
    assert _correct(compression, sample_data) >= _correct_in_float(sample_data) - 4
    told = {layer.name: layer.remedy for layer in compression.layers}
    assert "channel 11 spans" in told["features.0.0"] and "the median channel" in told["features.0.0"]
    assert not [layer.name for layer in compression.layers if layer.weights == "float32"]


def test_without_the_guard_most_is_lost(sample_data: Path) -> None:
    compression = _compressed(sample_data, "ptq", bits=8, fuses_functions=False, guard=False)
    assert _correct(compression, sample_data) < _correct_in_float(sample_data) - 60
    assert not any(layer.remedy for layer in compression.layers)
    (told,) = why_less_accurate(compression.tables)
    assert "channel 11 spans" in told and told.partition("; try ")[2].startswith("method.guard=true")
