import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitsweep.errors import CompressionError
from bitsweep.graphs import tracing
from bitsweep.graphs.faithful import differ
from bitsweep.graphs.ops import aten, layers

SIZE = 7


class Several(nn.Module):
    """What modules make of the same images."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.each = nn.ModuleList(modules)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [module(images) for module in self.each]


def _same(network: nn.Module) -> torch.fx.GraphModule:
    """The traced network, after a check that it yields the same."""
    images = torch.randn(3, 3, SIZE, SIZE)
    graph = tracing.trace(network.eval(), input_shape=(3, SIZE, SIZE))
    torch.testing.assert_close(graph(images.clone()), network(images))
    return graph


def _targets(graph: torch.fx.GraphModule) -> set[Any]:
    return {node.target for node in graph.graph.nodes if node.op == "call_function"}


def test_averages_of_all_kinds_are_averages_of_whole_windows() -> None:
    kinds = itertools.product([3, (2, 3)], [1, 2, (3, 2)], [0, 1, (1, 0)], [False, True], [False, True], [None, 5])
    pools = [nn.AvgPool2d(*kind) for kind in kinds]
    ends = itertools.product([False, True], [False, True])
    flat = [nn.Sequential(nn.Flatten(2), nn.AvgPool1d(3, 2, 1, *end)) for end in ends]
    graph = _same(Several(*pools, *flat, nn.AvgPool2d(2)))
    for node in graph.graph.find_nodes(op="call_function", target=aten.avg_pool2d.default):
        _, _, _, padding, ceil, counts_padding = (*node.args, [0, 0], False, True)[:6]
        assert not ceil and not (any(padding) and counts_padding)


def test_largest_values_of_windows_that_do_not_divide() -> None:
    sizes = (1, 2, 3, 5, 7, (4, None), (1, 6))
    flat = nn.Sequential(nn.Flatten(2), nn.AdaptiveMaxPool1d(9))
    graph = _same(Several(*map(nn.AdaptiveMaxPool2d, sizes), flat))
    assert not any("adaptive_max" in str(target) for target in _targets(graph))


@pytest.mark.parametrize(
    "spelled",
    [
        lambda x: torch.maximum(x, torch.zeros_like(x)), lambda x: torch.max(torch.tensor(0.0), x),
        lambda x: torch.maximum(x.new_zeros(1), x), lambda x: x.clip(0, math.inf), lambda x: x.clamp(torch.zeros(1)),
        lambda x: F.threshold(x, 0.0, 0.0), lambda x: x.clip(0, torch.finfo(x.dtype).max),
    ],
)  # fmt: skip
def test_a_relu_is_one_however_it_is_spelled(spelled: Callable[[Tensor], Tensor]) -> None:
    class Spelled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return spelled(x)

    assert _targets(_same(Spelled())) == {aten.relu.default}


@pytest.mark.parametrize(
    "spelled",
    [
        lambda x: torch.maximum(x, torch.arange(float(SIZE))), lambda x: torch.maximum(x, x.mean(1, keepdim=True)),
        lambda x: torch.maximum(x[:, :1], torch.zeros(3, 1, 1)), lambda x: torch.maximum(x, torch.ones_like(x)),
        lambda x: torch.maximum(x, torch.zeros(1).double()), lambda x: x.clamp(-x.abs(), torch.tensor(1.0)),
        lambda x: F.threshold(x, 0.0, 1.0), lambda x: x.clamp(torch.tensor(-2.0)),
    ],
)  # fmt: skip
def test_what_is_no_relu_stays(spelled: Callable[[Tensor], Tensor]) -> None:
    class Spelled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return spelled(x)

    assert aten.relu.default not in _targets(_same(Spelled()))


def test_clamps_have_one_form() -> None:
    class Clamps(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [
                x.clamp(min=0), x.clamp(0, 1), torch.clamp_min(x, 0), x.clamp(max=0.5), torch.clamp_max(x, 0.5),
                F.hardtanh(x), F.hardtanh(x, 0, 1), F.relu6(torch.cat([x, -x], 1)), F.rrelu(x),
                x.clamp(torch.tensor(-1.0), torch.ones(1)),
            ]  # fmt: skip

    graph = _same(Clamps())
    assert _targets(graph) >= {aten.relu.default, aten.hardtanh.default, aten.leaky_relu.default}
    for node in graph.graph.find_nodes(op="call_function", target=aten.hardtanh.default):
        assert len(node.args) == 3
    assert all(
        node.args[0].target != aten.cat.default for node in graph.graph.nodes if node.target == aten.relu6.default
    )


class Overwriting(nn.Module):
    """Operations that overwrite what others read by the same or another name."""

    def forward(self, images: Tensor) -> list[Tensor]:
        x = images * 2
        x.relu_().add_(1)
        flat = (x * 3).flatten(1)
        flat.mul_(2)
        y = x - 1
        seen = y.view(y.shape[0], -1)
        y[:, 0] = 0
        y[:, 1:].neg_()
        return [x, flat, y, seen]


def test_nothing_overwrites_a_tensor() -> None:
    graph = _same(Overwriting())
    assert not any(target._schema.is_mutable for target in _targets(graph) if hasattr(target, "_schema"))


def test_batch_normalisation_is_still_one_where_all_had_to_be_rewritten() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(1))
    network.register_forward_hook(lambda module, images, flat: flat[:, :4].relu_() + flat.sum(1, keepdim=True))
    assert aten.batch_norm.default in _targets(_same(network))


def test_weights_that_are_computed_are_parameters_of_their_layer() -> None:
    norm = nn.utils.parametrizations.weight_norm
    network = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), norm(nn.Linear(100, 5)))
    graph = _same(network)
    found = layers(graph)
    assert [layer.name for layer in found] == ["0", "2"]
    torch.testing.assert_close(found[0].weight, network[0].weight)
    assert len(dict(graph.named_buffers()) | dict(graph.named_parameters())) == 4


def test_all_dimensions_but_that_of_the_images_are_squeezed() -> None:
    graph = tracing.trace(nn.AdaptiveAvgPool2d(1), input_shape=(3, SIZE, SIZE))
    assert graph(torch.ones(1, 3, SIZE, SIZE)).shape == (1, 3, 1, 1)

    class Squeezed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3), keepdim=True).squeeze()

    assert tracing.trace(Squeezed(), input_shape=(3, SIZE, SIZE))(torch.ones(1, 3, SIZE, SIZE)).shape == (1, 3)


def test_the_number_of_images_may_be_asked_for() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 3, 1))

        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([self.token.expand(len(images), -1, -1), images.flatten(2)], 2)

    graph = _same(Token())
    assert graph(torch.ones(1, 3, SIZE, SIZE)).shape == (1, 3, SIZE * SIZE + 1)


@pytest.mark.parametrize(
    "draw", [lambda x: F.dropout(x, 0.5), torch.rand_like, lambda x: F.fractional_max_pool2d(x, 2, output_size=3)]
)
def test_random_numbers_are_refused(draw: Any) -> None:
    class Drawing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return draw(images)  # type: ignore[no-any-return]

    with pytest.raises(CompressionError, match="draws random numbers in evaluation"):
        tracing.trace(nn.Sequential(Drawing()), input_shape=(3, SIZE, SIZE))


@pytest.mark.parametrize(
    "transform",
    [
        torch.vmap(lambda x: x * x.sum()),
        lambda x: torch.func.jvp(torch.tanh, (x,), (x,))[1],
        torch.func.grad(lambda x: x.pow(3).sum()),
        torch.vmap(torch.func.grad(lambda x: x.square().sum().sqrt())),
    ],
    ids=["vmap", "jvp", "grad", "grads"],
)
def test_transformed_functions_are_refused(transform: Any) -> None:
    """What ``torch.export`` makes of them cannot run."""

    class Transforming(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return transform(images)  # type: ignore[no-any-return]

    with pytest.raises(CompressionError, match=r"calls a transformed function .*; write it out for all images"):
        tracing.trace(nn.Sequential(Transforming()), input_shape=(3, SIZE, SIZE))


class Calling(nn.Module):
    """A function of images, with a layer and a buffer that it may use."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self, images)  # type: ignore[no-any-return]


def _running_mean(self: Any, x: Tensor) -> Tensor:
    self.mean.mul_(0.9).add_(0.1 * x.mean((0, 2, 3), keepdim=True))
    return x - self.mean


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: torch.stack([self.layer(image[None])[0] for image in x]), "for one number of images at 3 x 7"),
        (lambda self, x: torch.vmap(lambda image: self.layer(image[None])[0])(x), "for one number of images at 3 x 7"),
        (lambda self, x: self.layer(x) if x.mean() > 0 else x, "decides by the values .*; choose with torch.where"),
        (lambda self, x: self.layer(x) - x.mean(0), "depends on the images beside it .*; let it look at each image"),
        (lambda self, x: x / x.abs().max(), "depends on the images beside it"),
        (lambda self, x: x / x.min(), "depends on the images beside it"),  # that of the first image
        (lambda self, x: x * x.min().item(), "depends on the images beside it"),
        (lambda self, x: x * 2 if self.mean.sum() > 0 else x, "decides by the values .* settings as numbers"),
        (lambda self, x: x * float(f"{x.mean():.3f}"), r"cannot trace the network .*; write its forward in operations"),
        (_running_mean, "depends on the images beside it"),
        (lambda self, x: F.batch_norm(x, None, None, training=True), "set track_running_stats=True"),
        (lambda self, x: x + len(x.tolist()), "cannot trace the network|another one|for one number|depends on"),
    ],
)
def test_what_is_no_function_of_one_image_is_refused(function: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        tracing.trace(Calling(function), input_shape=(3, SIZE, SIZE))


def _autocast_elsewhere(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = self.layer(x).relu_()
    with torch.autocast("cuda", enabled=False), torch.enable_grad():
        return self.layer(y)  # type: ignore[no-any-return]


def _own_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = self.layer(x).requires_grad_()
        return torch.autograd.grad((y**3).sum(), y)[0]


@pytest.mark.parametrize("function", [_autocast_elsewhere, _own_gradient])
def test_regions_become_part_of_the_graph_around_them(function: Any) -> None:
    network = Calling(function).requires_grad_(False)
    assert not any("higher_order" in str(target) for target in _targets(_same(network)))


def test_a_network_that_chooses_its_arithmetic_is_refused() -> None:
    def rounded(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(x).float()  # type: ignore[no-any-return]

    with pytest.raises(CompressionError, match=r"computes in bfloat16 by itself \(torch\.autocast\)"):
        tracing.trace(Calling(rounded), input_shape=(3, SIZE, SIZE))


def test_what_is_copied_over_a_part_has_a_derivative() -> None:
    def copied(self: Any, x: Tensor) -> Tensor:
        y = self.layer(x)
        y[:, 0, ::2], y[:, 1] = y[:, 0, :4] * 2, 1.5
        y[:, 2, 1:3] = x[:, 0, :1].double()
        return y  # type: ignore[no-any-return]

    graph = _same(Calling(copied).requires_grad_(False))
    assert aten.copy.default not in _targets(graph)
    graph(torch.randn(2, 3, SIZE, SIZE, requires_grad=True)).sum().backward()


def test_a_mask_may_be_infinite_and_a_weight_may_not() -> None:
    masked = nn.Linear(SIZE, SIZE)
    masked.register_buffer("mask", torch.full((SIZE, SIZE), -torch.inf).triu(1))
    masked.register_forward_hook(lambda module, images, scores: (scores + module.mask).softmax(-1))
    _same(masked)
    with torch.no_grad():
        masked.weight[0, 0] = torch.inf
    with pytest.raises(CompressionError, match="weight holds values that are not finite"):
        tracing.trace(masked, input_shape=(3, SIZE, SIZE))


@pytest.mark.parametrize("kernel, stride", [(3, 2), (2, 1), (2, 2), (3, 1), (3, 3), ((3, 2), (2, 1)), (5, 3)])
def test_largest_values_of_what_is_padded_with_minus_infinity(kernel: Any, stride: Any) -> None:
    amounts = [(0, 1, 0, 1), (1, 0, 1, 0), (1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 1, 0), (-1, 1, 0, 0)]
    values = [-math.inf, torch.finfo(torch.float32).min]
    graph = _same(
        Several(
            *[
                nn.Sequential(nn.ConstantPad2d(amount, value), nn.MaxPool2d(kernel, stride))
                for amount in amounts
                for value in values
            ]
        )
    )
    left = [node for node in graph.graph.nodes if node.target == aten.pad.default and node.args[-1] < -1]
    assert len(left) == 2  # those that take something away at the other side


def test_a_network_that_lets_rounding_grow_is_no_other_one() -> None:
    """What it yields for an image differs from that in a batch, in float32, by rounding alone."""

    class Sensitive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16 * 14 * 14, 8))

        def forward(self, images: Tensor) -> Tensor:
            x: Tensor = self.body(images)
            for _ in range(3):
                x = (1000 * x).sin()
            return x

    torch.manual_seed(0)
    network, images = Sensitive().eval(), torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in images])
        assert differ([network(images)], [alone])
    tracing.trace(network, input_shape=(3, 16, 16))


def test_what_is_computed_for_each_image_but_is_the_same_is_computed_once() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.embedding = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 1)

        def forward(self, images: Tensor) -> list[Tensor]:
            rows = torch.ones(len(images), SIZE, SIZE, device=images.device).cumsum(1)[:, None]
            embedded = self.embedding(rows)
            features = self.stem(images) + embedded
            of_two = torch.ones(2 * len(images), 1).cumsum(1)
            return [features, torch.cat([features, embedded], 1), embedded, of_two[: len(images)] * images[:, 0, 0]]

    graph = _same(Positions())
    assert [layer.name for layer in layers(graph)] == ["stem"]
    (add,) = graph.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    assert {node.op for node in add.all_input_nodes} == {"call_function", "get_attr"}


@pytest.mark.parametrize("parted", [
    lambda x: x.chunk(2, 1), lambda x: x.chunk(3, dim=-1), lambda x: x.split(3, 2), lambda x: x.split([1, 4, 2], -2),
    lambda x: [x, x.narrow(1, -2, 1), x.narrow(2, 3, 4)],
    lambda x: torch.tensor_split(x, 3, 1), lambda x: torch.tensor_split(x, (2, 5), 3), lambda x: x.split(100, 3),
])  # fmt: skip
def test_parts_are_slices(parted: Callable[[Tensor], Sequence[Tensor]]) -> None:
    class Parted(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            *others, last = parted(images)
            return [last, *others[1:]]  # the first is not read

    assert _targets(_same(Parted())) <= {aten.slice.Tensor}


def test_shuffled_channels_are_swapped() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 1)

        def forward(self, images: Tensor) -> list[Tensor]:
            features = self.stem(images)
            return [F.channel_shuffle(features, 3), F.channel_shuffle(features.flatten(2), 4)]

    assert _targets(_same(Shuffled())) >= {aten.reshape.default, aten.transpose.int}
    assert aten.channel_shuffle.default not in _targets(_same(Shuffled()))


def test_what_tells_images_apart_by_their_number_stays() -> None:
    class Numbered(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images + torch.arange(len(images))[:, None, None, None]

    with pytest.raises(CompressionError, match="depends on the images beside it"):
        tracing.trace(Numbered(), input_shape=(3, SIZE, SIZE))
