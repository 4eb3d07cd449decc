"""Factors of channels moved through a network that computes the same, so that one scale suits all channels of a tensor.

If channel i of a tensor has the factor 1 / s_i, the layers that read it make up for that with weights s_i times as
large; `channel_groups.py` finds where that can be. A layer that yields the tensor takes the factors into its own
weights and bias, which costs nothing. Hard-swish and SiLU do not let them through, but their gates do: with u = x / s,

    x g(x) / s = u g(s u),

where s u is a depthwise 1x1 convolution, which engines compute on codes. After any other function the factors are a
multiplication, which costs nothing where an engine computes it at the end of the layer before.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.graphs.im2col import groups_of
from bitsweep.graphs.ops import arguments, aten, attribute, is_layer, set_attribute
from bitsweep.quantization.rewrites.channel_groups import ScalingGroup, parameters_of_start
from bitsweep.quantization.rewrites.equalization import by_input_channel, from_input_channels

#: Factors of channels stay within this of the largest, so that dead ones do not become infinite.
SMALLEST_FACTOR = 1e-8
#: Share of what its parameters let expect that a channel reaches at least, seen or not.
RARE = 0.05


def is_depthwise(graph: GraphModule, layer: Node) -> bool:
    """Whether each output channel of a layer reads one input channel, so that factors are lost in its own scales."""
    return not is_layer(layer) or (groups_of(layer) > 1 and attribute(graph, arguments(layer)[1]).shape[1] == 1)


def reader_weights(graph: GraphModule, group: ScalingGroup, changes_C: Tensor) -> Tensor | None:
    """Largest weight that each channel meets in layers whose scales channels share, [C]; None if there are none.

    Each output of a layer has a scale of its own, and so have those that read it. So weights count in units of what the
    output tells, the root of sum_i (w_i d_i)^2: outputs that are large for some reason decide no more than others.

    Args:
        changes_C: d_i, by how much each channel changes; what is always the same tells nothing.
    """
    dense = [reader for reader in group.readers if not is_depthwise(graph, reader)]
    largest = torch.zeros(group.channels)
    for reader in dense:
        number_I = group.carriers[arguments(reader)[0]]
        columns = by_input_channel(attribute(graph, arguments(reader)[1]), reader, len(number_I))
        weight_GCOK = columns.reshape(groups_of(reader), -1, *columns.shape[1:])
        told_GCOK = weight_GCOK * changes_C[number_I].view(len(weight_GCOK), -1, 1, 1)
        told_GO = told_GCOK.square().sum((1, 3), keepdim=True).sqrt()
        met_I = (weight_GCOK / told_GO.clamp(min=1e-30)).abs().amax((2, 3)).flatten()
        largest.scatter_reduce_(0, number_I, met_I, "amax")
    return largest if dense else None


def expected_reach(graph: GraphModule, group: ScalingGroup, reach_C: Tensor) -> Tensor:
    """Largest magnitudes of channels, where those that few images reach count as parameters let expect.

    With the largest parameter p_i of a channel and the median m of r_i / p_i, r_i is at least a twentieth of m p_i. Of
    a channel that a rectifier held at 0, a bias below 0 does not count: it is why the channel reaches nowhere.
    """
    expected_C = reach_C.clone()
    for start in group.starts if group.starts_with_layer else ():
        number_O = group.carriers[start]
        reach_O = reach_C[number_O]
        weight, bias = parameters_of_start(graph, start)
        largest = (
            attribute(graph, weight).flatten(1).abs().amax(1) if is_layer(start) else attribute(graph, weight).abs()
        ).flatten()
        if bias is not None:
            shift_C = attribute(graph, bias).flatten()
            largest = torch.maximum(largest, torch.where(reach_O > 0, shift_C.abs(), shift_C.clamp(min=0)))
        live = (reach_O > 0) & (largest > 0)
        if live.any():
            least = RARE * (reach_O[live] / largest[live]).median() * largest
            expected_C.scatter_reduce_(0, number_O, least, "amax")
    return expected_C


def even_factors(reach_C: Tensor, weights_C: Tensor | None) -> Tensor:
    """Factors s that even out the channels of a tensor, float32 [C]; their geometric mean is 1.

    Where only depthwise layers read it, s_i is the largest magnitude r_i, so that all channels reach equally far. Where
    other layers do, whose weights w_i become s_i times as large, s_i = sqrt(r_i / w_i): what the activations lose in
    range is shared with the weights. Channels that are 0, or that nobody reads, are left alone.

    Args:
        reach_C: largest magnitude of each channel.
        weights_C: largest weight that each channel meets, see ``reader_weights``.
    """
    reach = reach_C.double()
    factor = reach if weights_C is None else (reach / weights_C.double().clamp(min=1e-30)).sqrt()
    live = (reach > 0) & torch.isfinite(factor) & (factor > 0)
    if weights_C is not None:
        live &= weights_C > 0
    if not live.any():
        return torch.ones_like(reach_C)
    factor = torch.where(live, factor, factor[live].median())
    factor = torch.maximum(factor, factor.max() * SMALLEST_FACTOR)
    return (factor / factor.log().mean().exp()).float()


def scale_channels(graph: GraphModule, group: ScalingGroup, factor_C: Tensor) -> None:
    """Divide, in place, the channels of a group by their factors, and let its readers make up for it.

    The graph is left to be recompiled, after the last of its groups.
    """
    for reader in group.readers:
        multiplied_C = factor_C[group.carriers[arguments(reader)[0]]]
        path = arguments(reader)[1].target
        weight = attribute(graph, arguments(reader)[1])
        if not is_layer(reader):  # a normalisation
            set_attribute(graph, path, weight * multiplied_C.view(weight.shape))
            continue
        columns = by_input_channel(weight, reader, len(multiplied_C))
        set_attribute(graph, path, from_input_channels(columns * multiplied_C.view(-1, 1, 1), weight, reader))
    for start in group.starts:
        divided_C = factor_C[group.carriers[start]]
        if not group.starts_with_layer:
            _multiply_after(graph, start, 1 / divided_C)
            continue
        for parameter in parameters_of_start(graph, start):
            if parameter is not None:
                rows = attribute(graph, parameter)
                shape = [-1, *[1] * (rows.ndim - 1)] if is_layer(start) else rows.shape
                set_attribute(graph, str(parameter.target), rows / divided_C.view(shape))
    for function in group.gated:
        _write_gate(graph, function, factor_C[group.carriers[function]])


def _multiply_after(graph: GraphModule, node: Node, factor_C: Tensor) -> None:
    path = f"{node.name}_unit"
    shaped = factor_C.view(1, -1, *[1] * (node.meta["val"].ndim - 2))
    if hasattr(graph, path):  # it was scaled before
        set_attribute(graph, path, getattr(graph, path) * shaped)
        return
    set_attribute(graph, path, shaped)
    with graph.graph.inserting_after(node):
        read = graph.graph.get_attr(path)
    with graph.graph.inserting_after(read):
        product = graph.graph.call_function(aten.mul.Tensor, (node, read))
    product.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)


def _write_gate(graph: GraphModule, function: Node, factor_C: Tensor) -> None:
    """Write u g(s u) in the place of x g(x) / s."""
    (u,) = function.args
    assert isinstance(u, Node)
    hard = function.target == aten.hardswish.default
    slope, offset = (1 / 6, 0.5) if hard else (1.0, 0.0)
    path, channels = f"{function.name}_gate", len(factor_C)
    graph.add_module(path, torch.nn.Module())
    with graph.graph.inserting_before(function):
        parameters = []
        for name, value in (
            ("weight", (slope * factor_C).view(-1, 1, 1, 1)),
            ("bias", torch.full((channels,), offset)),
        ):
            set_attribute(graph, f"{path}.{name}", value)
            parameters.append(graph.graph.get_attr(f"{path}.{name}"))
        geometry = ([1, 1], [0, 0], [1, 1], channels)
        gate = graph.graph.call_function(aten.conv2d.default, (u, *parameters, *geometry))
        bounded = (
            graph.graph.call_function(aten.hardtanh.default, (gate, 0.0, 1.0))
            if hard
            else graph.graph.call_function(aten.sigmoid.default, (gate,))
        )
        product = graph.graph.call_function(aten.mul.Tensor, (u, bounded))
    for node in (gate, bounded, product):
        node.meta["val"] = function.meta["val"]
    function.replace_all_uses_with(product)
    graph.graph.erase_node(function)
