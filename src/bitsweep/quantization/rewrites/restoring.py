"""Means and scales of what layers yield: rounding changes them, and biases and the scales of weights can restore them.

Let y be what a channel of a layer yields in the float network, and z what it yields in the rounded one, whose earlier
layers are restored already. Over images and places

    z - E[z] = g (y - E[y]) + noise,    g = cov(y, z) / var(y),

so that (z - E[z]) / g + E[y] has the mean and the scale of y. It takes another bias, and weights times
1 / g: other scales for the same codes, at no cost. Rectifiers turn noise into shifts, and clipped values take from the
scale. Both add up from layer to layer: a network of fifty layers that each lose a thousandth of the scale loses 5 %.

Papers: the means are restored as in Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv 1906.04721), section 4.2 and appendix D.
"""

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.graphs.ops import LAYER_KINDS, arguments, attribute, ensure_bias, is_layer, set_attribute
from bitsweep.graphs.qdq_pairs import fuse_pairs
from bitsweep.quantization.overwriting import overwriting

#: Images on which a network is compared: so many of 224 x 224 pixels, and more of smaller ones, up to a limit.
IMAGES, MOST_IMAGES = 32, 128
_PIXELS = IMAGES * 224**2
#: Images that are run at a time: what a layer yields for few of them is memory that the next layer finds in use.
_AT_A_TIME = 8
#: Places of an image that are compared, at least, where a channel has more.
PLACES = 1 << 10
#: By how much channels of a layer differ in their gain, as a standard deviation.
SPREAD = 0.03
#: Noise of more than this share of the signal's power would only grow with the scale.
_DROWNED = 0.25
_TINY = 1e-300
#: A gain below, or above the inverse, is no longer a question of scale.
_LEAST_GAIN = 0.5


def with_parameters(graph: GraphModule, parameters: Mapping[str, Tensor]) -> GraphModule:
    """A copy of a graph with other parameters, by path."""
    copied = GraphModule(graph, copy.deepcopy(graph.graph))
    for path, values in parameters.items():
        set_attribute(copied, path, values)
    return copied


def scaled(weight: Tensor, factor_C: Tensor) -> Tensor:
    """Weights [C, ...] with each output channel multiplied by its factor."""
    return (weight * factor_C.view(-1, *[1] * (weight.ndim - 1))).float()


@torch.no_grad()
def restore_outputs(
    rounded: GraphModule,
    exact: GraphModule,
    batches: Sequence[Tensor],
    *,
    only: Collection[str] | None = None,
    scales: bool = True,
    alike: Collection[str] = (),
) -> dict[str, Tensor]:
    """Restore, in place, mean and scale of each channel that a layer yields, layer by layer in order.

    Args:
        rounded: the network with rounded weights; its activations may pass through pairs.
        exact: the float network, with layers of the same names.
        batches: calibration images, float32 [N, 3, H, W], of which evenly spread ones are taken.
        only: paths of the weights of the layers; None for all.
        scales: whether to restore the scales, too.
        alike: paths of the weights that have one scale for all channels.

    Returns:
        What the weights of layers were multiplied by, [C], by their path.
    """
    layers = {node.name: node for node in rounded.graph.nodes if is_layer(node)}
    runs = Counter(_path(node) for node in layers.values())
    biases = {name: ensure_bias(rounded, node) for name, node in layers.items() if only is None or _path(node) in only}
    shared = Counter(str(bias.target) for bias in biases.values())
    fused = GraphModule(rounded, copy.deepcopy(rounded.graph))
    fuse_pairs(fused)
    pairs = [(_Part(fused, some), _Part(exact, some)) for some in torch.split(_chosen(batches), _AT_A_TIME)]
    nodes, factors = iter(exact.graph.nodes), dict[str, Tensor]()
    with overwriting(fused), overwriting(exact):
        for node in fused.graph.nodes:
            yielded = [part.step(node) for part, _ in pairs]
            if node.name not in biases or shared[str(biases[node.name].target)] > 1:
                continue  # what several layers share has no mean of its own
            meant = _until(node.name, nodes, [part for _, part in pairs])
            path, bias = _path(node), biases[node.name]
            mean_C, meant_C, gain_C = _compared(yielded, meant, node, alike=path in alike)
            if not scales or runs[path] > 1:
                gain_C = torch.ones_like(gain_C)
            shift_C = meant_C - mean_C / gain_C
            for result in yielded:
                result.mul_(_along(1 / gain_C, node, result)).add_(_along(shift_C, node, result))
            set_attribute(rounded, str(bias.target), (attribute(rounded, bias) / gain_C + shift_C).float())
            if (gain_C != 1).any():
                factors[path] = 1 / gain_C
                set_attribute(rounded, path, scaled(attribute(rounded, arguments(layers[node.name])[1]), factors[path]))
    rounded.recompile()
    return factors


def _compared(yielded: list[Tensor], meant: list[Tensor], layer: Node, *, alike: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The means of what a layer yields and is meant to yield, and by how much its scale is too large, float64 [C]."""
    yielded, meant = ([_sample(part, layer) for part in parts] for parts in (yielded, meant))
    mean_C, meant_C = (_mean(parts, layer) for parts in (yielded, meant))
    moments_3C = torch.zeros(3, len(mean_C), dtype=torch.float64)
    for one, other in zip(yielded, meant, strict=True):
        own, exact = one - _along(mean_C, layer, one), other - _along(meant_C, layer, other)
        products = (exact * own, own.square_(), exact.square_())
        moments_3C += torch.stack([_sum(each, layer) for each in products])
    covariance_C, own_C, variance_C = moments_3C
    images = 0 if alike else sum(map(len, yielded))
    return mean_C, meant_C, gains(covariance_C, variance_C, own_C, images)


def gains(covariance_C: Tensor, variance_C: Tensor, own_C: Tensor, images: int) -> Tensor:
    """g of each channel, which the fewer images there are, and the more noise, the less may differ from that of all.

    With error variance v_c of channel c over N images, g_c = cov_c / var_c is uncertain by v_c / (N var_c), and g_c - g
    is known beforehand to be about ``SPREAD``: the most likely g_c is the mean of both, weighted by their certainty.
    Without images it is that of all channels.
    """
    variance = variance_C.sum().item()
    gain = covariance_C.sum().item() / variance if variance > 0 else 1.0
    noise_C = (own_C - covariance_C.square() / variance_C.clamp(min=_TINY)).clamp(min=0)
    drowned = noise_C.sum().item() > _DROWNED * gain**2 * variance
    if drowned or not _LEAST_GAIN < gain < 1 / _LEAST_GAIN:
        return torch.ones_like(variance_C)
    if not images:
        return torch.full_like(variance_C, gain)
    doubt_C = noise_C / (images * SPREAD**2)
    gain_C = (covariance_C + gain * doubt_C) / (variance_C + doubt_C).clamp(min=_TINY)
    return torch.where((gain_C > gain * _LEAST_GAIN) & (gain_C < gain / _LEAST_GAIN), gain_C, gain)


def _mean(parts: list[Tensor], layer: Node) -> Tensor:
    """Of each channel over all images and places, float64 [C]."""
    within = _places(layer, parts[0].ndim)
    return torch.cat([part.mean(within) if within else part for part in parts]).double().mean(0)


def _sum(values: Tensor, layer: Node) -> Tensor:
    """Of each channel [C]: within an image in float32, which is fast, and over the images in float64."""
    within = _places(layer, values.ndim)
    return (values.sum(within) if within else values).double().sum(0)


def _sample(values: Tensor, layer: Node) -> Tensor:
    """Evenly spread rows, columns or tokens of each image: so many that they have ``PLACES`` places."""
    within = _places(layer, values.ndim)
    step = math.prod(values.shape[dim] for dim in within) // PLACES if within else 1
    if step < 2:
        return values
    longest = max(within, key=lambda dim: values.shape[dim])
    step = min(step, values.shape[longest])
    return values.index_select(longest, torch.arange(step // 2, values.shape[longest], step))


def _places(layer: Node, dims: int) -> list[int]:
    """The dimensions within an image and channel."""
    return [dim for dim in range(1, dims) if dim != _axis(layer, dims)]


def _axis(layer: Node, dims: int) -> int:
    """Of the channels."""
    return dims - 1 if LAYER_KINDS[layer.target] == "linear" else 1


def _along(values_C: Tensor, layer: Node, like: Tensor) -> Tensor:
    """Values of the channels in the shape of what a layer yields."""
    axis = _axis(layer, like.ndim)
    return values_C.to(like.dtype).view([-1 if dim == axis else 1 for dim in range(like.ndim)])


def _path(layer: Node) -> str:
    """Of a layer's weights."""
    return str(arguments(layer)[1].target)


def _chosen(batches: Sequence[Tensor]) -> Tensor:
    """Evenly spread images of the batches."""
    height, width = batches[0].shape[2:]
    most = min(MOST_IMAGES, max(IMAGES, _PIXELS // (height * width)))
    every = max(1, len(batches) * len(batches[0]) // most)
    return torch.cat([batches[index] for index in range(0, len(batches), every)])[:most]


def _until(name: str, nodes: Iterator[Node], parts: list["_Part"]) -> list[Tensor]:
    """What the operation of that name yields, after all before it."""
    for node in nodes:
        yielded = [part.step(node) for part in parts]
        if node.name == name:
            return yielded
    raise AssertionError(f"no {name} in the float network")


class _Part(Interpreter):
    """Runs a network on some of the images, an operation at a time."""

    def __init__(self, graph: GraphModule, images: Tensor) -> None:
        super().__init__(graph)
        self.args_iter = iter((images,))

    def step(self, node: Node) -> Any:
        """What the next operation yields."""
        self.env[node] = result = self.run_node(node)
        for last_read in self.user_to_last_uses.get(node, ()):
            del self.env[last_read]
        return result
