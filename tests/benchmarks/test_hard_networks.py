from collections.abc import Callable

import hard_networks
import pytest
import torch
import torchvision
from torch import Tensor, nn

from bitsweep.models.cifar_resnet import CifarResNet
from bitsweep.models.efficientnet_lite import EfficientNetLite0

SIZE = 64
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: CifarResNet(name="resnet20", image_size=32, depth=20).build(10),
    "efficientnet_lite0": lambda: EfficientNetLite0(name="efficientnet_lite0", image_size=SIZE).build(10),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "alexnet": lambda: torchvision.models.alexnet(num_classes=10),
}

UNCHANGED = {("alexnet", "variance"), ("alexnet", "sums"), ("resnet20", "sums"),
             ("alexnet", "offsets"), ("resnet20", "offsets")}  # fmt: skip


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def made(name: str) -> nn.Module:
    """A network whose normalisations have seen images."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network(images())
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", hard_networks.HARD)
@pytest.mark.slow
def test_the_function_stays(name: str, how: str) -> None:
    network = made(name)
    hard = hard_networks.HARD[how](network)
    with torch.inference_mode():
        before, after = network.double()(images().double()), hard.double()(images().double())
    assert float((after - before).abs().max()) <= 2e-4 * float(before.abs().max())
    changed = {key for key, value in hard.state_dict().items() if not torch.equal(value, network.state_dict()[key])}
    # AlexNet has neither normalisations nor sums; the small residual network pads what it adds up, and has a function
    # behind every layer.
    assert bool(changed) != ((name, how) in UNCHANGED)


def ranges(network: nn.Module, path: str) -> Tensor:
    """The largest value of each channel of what a module yields."""
    seen: list[Tensor] = []
    hook = network.get_submodule(path).register_forward_hook(lambda module, given, yielded: seen.append(yielded))
    with torch.inference_mode():
        network(images())
    hook.remove()
    return seen[0].transpose(0, 1).flatten(1).amax(1)


def test_rescaled_channels_span_what_was_asked_through_depthwise_layers() -> None:
    network = made("mobilenet_v3_small")
    hard = hard_networks.rescaled(network, span=100.0)
    for path in ("features.2.block.0", "features.2.block.1"):  # expansion, depthwise; each with its ReLU
        ratio = ranges(hard, path) / ranges(network, path)
        ratio = ratio[ratio.isfinite()]
        assert 0.01 <= ratio.min() < 0.03 and 30 < ratio.max() <= 100


def test_sums_span_what_was_asked() -> None:
    network = made("mobilenet_v2")
    hard = hard_networks.with_rescaled_sums(network, span=100.0)
    ratio = ranges(hard, "features.4.conv") / ranges(network, "features.4.conv")  # one of the second stage's two
    assert 0.01 <= ratio.min() < 0.03 and 30 < ratio.max() <= 100


def test_offsets_are_what_was_asked() -> None:
    network = made("mobilenet_v2")
    difference = ranges(hard_networks.with_offsets(network, size=50.0), "features.4.conv") - ranges(
        network, "features.4.conv"
    )
    assert 30 < difference.std() < 80


def test_offsets_that_a_layer_reads_where_it_runs_again_are_left_out() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.reader = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.reader(torch.relu(self.reader(self.norm(self.first(x)))))

    torch.manual_seed(0)
    network = Shared().eval()
    torch.testing.assert_close(hard_networks.with_offsets(network)(images()), network(images()))


def test_constant_channels_are_constant_and_go_through_depthwise_layers() -> None:
    network = made("mobilenet_v3_small")
    hard = hard_networks.with_constant_channels(network, count=1, value=30.0)
    for path in ("features.2.block.0", "features.2.block.1"):
        before, after = ranges(network, path), ranges(hard, path)
        assert len(after) == len(before) + 2
        torch.testing.assert_close(after[-2:], torch.full((2,), 30.0), rtol=1e-4, atol=0)


def test_variances_are_tiny_in_the_share_of_channels() -> None:
    hard = hard_networks.with_tiny_variances(made("resnet20"), share=0.5, variance=1e-8)
    variances = torch.cat([m.running_var for m in hard.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0.4 < float((variances == 1e-8).float().mean()) < 0.6
