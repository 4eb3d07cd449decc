from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitsweep.data.preprocessing import preprocess
from bitsweep.datasets.image_folder import ImageFolder
from bitsweep.models.efficientnet_lite import EfficientNetLite, EfficientNetLite0, EfficientNetLite1, EfficientNetLite2
from bitsweep.runtime.environment import version_of
from bitsweep.training.network import build_network, start_from_weights


def model(cls: type[EfficientNetLite] = EfficientNetLite0, /, **knobs: object) -> EfficientNetLite:
    return cls(**{"name": "lite", "image_size": 224, **knobs})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [(EfficientNetLite0, 4_652_008), (EfficientNetLite1, 5_416_680), (EfficientNetLite2, 6_092_072)],
)
def test_the_published_number_of_parameters(cls: type[EfficientNetLite], parameters: int) -> None:
    """4.7, 5.4 and 6.1 million in the table of the published models."""
    with torch.device("meta"):
        network = model(cls).build(1000)
    assert sum(value.numel() for value in network.parameters()) == parameters


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


@pytest.fixture(scope="module")
def ants_and_bees(sample_data: Path) -> torch.Tensor:
    """8 photographs of each, as these networks take them."""
    raw = ImageFolder(name="a", root=str(sample_data / "hymenoptera")).decode()
    assert raw.classes == ("ants", "bees")
    chosen = np.concatenate([np.flatnonzero(raw.test.labels == label)[:8] for label in (0, 1)])
    moments = {"mean_C": (127 / 255,) * 3, "std_C": (128 / 255,) * 3}
    return preprocess(raw.test.images[chosen], input_shape=(3, 224, 224), **moments)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [EfficientNetLite0, EfficientNetLite1, EfficientNetLite2])
def test_imagenet_weights_know_what_they_were_trained_on(
    cls: type[EfficientNetLite], ants_and_bees: torch.Tensor
) -> None:
    if version_of(cls.weights_package) == "absent":
        pytest.skip("needs bitsweep[pretrained]")
    made = model(cls, weights="imagenet")
    assert made.pixels == "centred"
    assert made.source() == f"imagenet of {cls.weights_package} 0.1.0"
    network, _ = build_network(made, 1000)
    start_from_weights(network, made, num_classes=1000)
    with torch.inference_mode():
        found = network.eval()(ants_and_bees).argmax(1).numpy()
    assert (found == np.repeat([310, 309], 8)).mean() > 0.6
