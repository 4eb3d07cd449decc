"""A layer as a chain of smaller ones, which its factors are the weights of.

    linear, S to T                 linear, S to R; linear, R to T
    convolution 1 x 1, S to T      1 x 1, S to R; 1 x 1, R to T
    convolution D x D, S to T      1 x 1, S to R; D x D on each of R channels; 1 x 1, R to T

Stride, padding and dilation belong to the D x D convolution, or else to the first of the chain; the bias to the last.

Shape letters: as in `bitsweep.quantization.lowrank.factorization`.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.errors import ConfigError
from bitsweep.graphs.im2col import geometry
from bitsweep.graphs.ops import LAYER_KINDS, Layer, arguments, aten, bias_of, is_layer, set_attribute, tidy
from bitsweep.quantization.lowrank.admm import as_weights
from bitsweep.quantization.lowrank.factorization import Factors, reconstruct
from bitsweep.quantization.weights import Codes
from bitsweep.text import some

#: What computes a layer of a chain that looks at one position at a time.
POINTWISE: dict[str, Any] = {
    "conv1d": aten.conv1d.default,
    "conv2d": aten.conv2d.default,
    "linear": aten.linear.default,
}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The replacement of a layer: several layers, or the same with other weights.

    Attributes:
        weights: of its layers, in the order in which they run.
        codes: of these; none where they stay float.
        errors: relative error of their product as it was found, step by step.
        facts: figures worth a table.
        reason: why it is still one layer, where more was asked for.
    """

    weights: tuple[Tensor, ...]
    codes: tuple[Codes, ...] = ()
    errors: tuple[float, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def layer_nodes(graph: GraphModule, *, keep: Collection[str] = ()) -> dict[str, Node]:
    """The layers of a network that can be put on a grid, by the path of their weights.

    Raises:
        ConfigError: one that is to be kept, by its name, is not among them.
    """
    nodes = {str(arguments(node)[1].target): node for node in graph.graph.nodes if is_layer(node)}
    names = [path.removesuffix(".weight") for path in nodes]
    if unknown := {*keep} - {*names}:
        raise ConfigError(f"method.keep={min(unknown)}: no such layer; choose from {some(names, 30)}")
    return nodes


def tensor_of(weight: Tensor) -> Tensor:
    """Weights of a layer with one group as the tensor that is factorised: [T, S], or [T, S, P] with a larger kernel."""
    return weight.flatten(2) if math.prod(weight.shape[2:]) > 1 else weight.flatten(1)


def chain_of_factors(factors: Factors, shape: torch.Size, **about: Any) -> Chain:
    """The chain that float factors are the weights of.

    Args:
        shape: of the weights of the layer that the chain replaces.
        about: other attributes of the chain.
    """
    weights = [as_weights(factor, mode) for mode, factor in enumerate(factors)]
    return Chain(weights=_chained(weights, shape), **about)


def chain_of_codes(codes: Sequence[Codes], shape: torch.Size, **about: Any) -> Chain:
    """The chain that codes of factors, from `bitsweep.quantization.lowrank.admm`, are the weights of."""
    last, first, *middle = codes
    shapes = [weights.shape for weights in _chained([each.codes for each in codes], shape)]
    ordered = [
        replace(each, codes=each.codes.reshape(shape))
        for each, shape in zip((first, *middle, last), shapes, strict=True)
    ]
    return Chain(weights=tuple(each.values for each in ordered), codes=tuple(ordered), **about)


def product(weights: Sequence[Tensor]) -> Tensor:
    """The weights of the one layer that computes what a chain computes."""
    if len(weights) == 1:
        return weights[0]
    first, *middle, last = weights
    factors = (last.flatten(1), first.flatten(1).T, *(each.flatten(1).T for each in middle))
    kernel = (middle or [first])[0].shape[2:]
    return reconstruct(factors).reshape(len(last), first.shape[1], *kernel)


def set_products(graph: GraphModule, chains: Mapping[str, Chain]) -> None:
    """Give, in place, each layer the weights that its chain amounts to.

    Args:
        chains: by the path of the weights of the layer.
    """
    for path, chain in chains.items():
        set_attribute(graph, path, product(chain.weights))


def split(
    graph: GraphModule, layers: Sequence[Layer], chains: Mapping[str, Chain]
) -> tuple[tuple[Layer, ...], dict[str, Codes]]:
    """Replace, in place, layers by their chains.

    Args:
        layers: of the graph.
        chains: by the path of the weights of the layer.

    Returns:
        The layers with the names of the nodes that were put before them, and codes by the path of the weights.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    codes: dict[str, Codes] = {}
    done = []
    for layer in layers:
        node, factors = nodes[layer.node], tuple[str, ...]()
        if is_layer(node):
            path = str(arguments(node)[1].target)
            chain = chains[path]
            paths = {node.name: path}
            if len(chain.weights) > 1:
                paths = replace_by_chain(graph, node, chain.weights)
                factors = tuple(paths)[:-1]
            codes |= zip(paths.values(), chain.codes, strict=bool(chain.codes))
        done.append(replace(layer, factors=factors))
    tidy(graph)
    return tuple(done), codes


def replace_by_chain(graph: GraphModule, layer: Node, weights: Sequence[Tensor]) -> dict[str, str]:
    """Let, in place, a layer be the last of a chain; it keeps the name of its node, and its bias.

    Args:
        layer: with one group.
        weights: of the chain's layers, in the order in which they run.

    Returns:
        By the names of the chain's nodes, in the order in which they run, the paths of their weights.
    """
    source, weight = arguments(layer)[:2]
    pointwise, spatial, shape = POINTWISE[LAYER_KINDS[layer.target]], layer.target, geometry(layer)[:3]
    *heads, last = weights
    paths: dict[str, str] = {}
    with graph.graph.inserting_before(layer):
        for number, head in enumerate(heads):
            name, path = f"{layer.name}_factor{number}", f"{weight.target}_factor{number}"
            set_attribute(graph, path, head)
            arranged = (*shape, len(head) if number else 1) if shape and head is heads[-1] else ()
            target: Any = spatial if arranged else pointwise
            operands = (graph.graph.get_attr(path), None, *arranged)
            read = source.meta["val"]
            source = graph.graph.create_node("call_function", target, (source, *operands), name=name)
            with read.fake_mode:
                source.meta["val"] = target(read, read.fake_mode.from_tensor(head), *operands[1:])
            paths[source.name] = path
        path = f"{weight.target}_factor{len(heads)}"
        set_attribute(graph, path, last)
        layer.args = (source, graph.graph.get_attr(path), bias_of(layer))
        layer.target = pointwise
    return paths | {layer.name: path}


def _chained(factor_weights: Sequence[Tensor], shape: torch.Size) -> tuple[Tensor, ...]:
    """A [T, R], B^T [R, S] and perhaps C^T [R, P] as the weights of layers, in the order in which they run."""
    last, first, *middle = factor_weights
    kernel = shape[2:]
    points = [1] * len(kernel)
    return (
        first.reshape(*first.shape, *points),
        *(each.reshape(len(each), 1, *kernel) for each in middle),
        last.reshape(*last.shape, *points),
    )
