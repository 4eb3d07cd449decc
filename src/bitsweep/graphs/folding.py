"""Batch normalisation and gates folded into the convolution or linear layer before them.

In evaluation mode the normalisation is an affine map of each channel. With the weights W and the bias b before it,

    W' = W gamma / sqrt(v + eps),    b' = beta + (b - mu) gamma / sqrt(v + eps)

compute the same. So does a hard-sigmoid, min(1, max(0, x / 6 + 1/2)): what is left of it is a clamp.

Paper: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv 1712.05877), section 3.2.
"""

import torch
from torch.fx import GraphModule, Node

from bitsweep.errors import CompressionError
from bitsweep.graphs.ops import arguments, aten, attribute, ensure_bias, free_path, is_layer, set_attribute, tidy


def affine_of_norm(
    *,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and offset, float64 [C], with which a normalisation of C channels computes ``x * factor + offset``."""
    factor = (variance.double() + eps).rsqrt()
    if gamma is not None:
        factor = factor * gamma.double()
    offset = -mean.double() * factor
    if beta is not None:
        offset = offset + beta.double()
    return factor, offset


def fold_weights(
    weight: torch.Tensor, bias: torch.Tensor | None, *, factor: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [C, ...] and bias [C] of a layer that include an affine map of its C output channels."""
    folded_bias = offset if bias is None else bias.double() * factor + offset
    return (weight.double() * _along(factor, 0, weight.ndim)).to(weight.dtype), folded_bias.to(weight.dtype)


def fold_batch_norm(graph: GraphModule) -> list[str]:
    """Remove, in place, every batch normalisation.

    One that alone takes the output of a layer is folded into it; any other becomes a multiplication and an addition.

    Returns:
        The paths of the weights that one was folded into.

    Raises:
        CompressionError: a normalisation uses the statistics of the batch, so that it cannot be an affine map.
    """
    folded = fold_into_layers(graph)
    for norm in graph.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        _replace(graph, norm, _insert_affine(graph, norm, *affine_of_node(graph, norm)))
    tidy(graph)
    return folded


def fold_into_layers(graph: GraphModule) -> list[str]:
    """Fold, in place, each batch normalisation that alone takes the output of a layer into it; others stay.

    Returns, and raises, what ``fold_batch_norm`` does.
    """
    folded = []
    for norm in graph.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        layer = norm.args[0]
        if _owns_its_parameters(layer):
            _fold_into(graph, layer, *affine_of_node(graph, norm))
            folded.append(str(layer.args[1].target))
            _replace(graph, norm, layer)
    tidy(graph)
    return folded


def affine_of_node(graph: GraphModule, norm: Node) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``affine_of_norm`` returns for a batch normalisation; raises as ``fold_batch_norm`` does."""
    _, gamma, beta, mean, variance, training, _, eps, *_ = arguments(norm)
    if training or mean is None:
        raise CompressionError(f"{norm.name} normalises by the statistics of a batch; set track_running_stats=True")
    return affine_of_norm(
        gamma=None if gamma is None else attribute(graph, gamma),
        beta=None if beta is None else attribute(graph, beta),
        mean=attribute(graph, mean),
        variance=attribute(graph, variance),
        eps=eps,
    )


def fold_hard_sigmoid(graph: GraphModule) -> None:
    """Fold, in place, slope and offset of each hard-sigmoid that alone takes a layer's output; a clamp to [0, 1] stays.

    Engines clamp in the kernel of the layer, and have none that computes a hard-sigmoid on codes.
    """
    for gate in graph.graph.find_nodes(op="call_function", target=aten.hardsigmoid.default):
        (layer,) = gate.args
        if _owns_its_parameters(layer):
            channels = len(attribute(graph, layer.args[1]))
            slope, offset = torch.tensor([1 / 6, 1 / 2], dtype=torch.float64)
            _fold_into(graph, layer, slope.expand(channels), offset.expand(channels))
            gate.target, gate.args = aten.hardtanh.default, (layer, 0.0, 1.0)
    graph.recompile()


def _replace(graph: GraphModule, norm: Node, by: Node) -> None:
    norm.replace_all_uses_with(by)
    graph.graph.erase_node(norm)


def _owns_its_parameters(node: Node) -> bool:
    """Whether a node is a layer whose output and parameters have one user only."""
    if not is_layer(node) or len(node.users) > 1:
        return False
    return all(len(parameter.users) == 1 for parameter in node.args[1:3] if isinstance(parameter, Node))


def _fold_into(graph: GraphModule, layer: Node, factor: torch.Tensor, offset: torch.Tensor) -> None:
    weight, bias = layer.args[1], ensure_bias(graph, layer)
    assert isinstance(weight, Node)
    folded_weight, folded_bias = fold_weights(
        attribute(graph, weight), attribute(graph, bias), factor=factor, offset=offset
    )
    set_attribute(graph, str(weight.target), folded_weight)
    set_attribute(graph, str(bias.target), folded_bias)


def _insert_affine(graph: GraphModule, norm: Node, factor: torch.Tensor, offset: torch.Tensor) -> Node:
    x = norm.args[0]
    assert isinstance(x, Node)
    ndim = x.meta["val"].ndim
    with graph.graph.inserting_before(norm):
        operands = []
        for name, value in (("factor", factor), ("offset", offset)):
            path = free_path(graph, f"{norm.name}_{name}")
            set_attribute(graph, path, _along(value, 1, ndim).float())
            operands.append(graph.graph.get_attr(path))
        scaled = graph.graph.call_function(aten.mul.Tensor, (x, operands[0]))
        shifted = graph.graph.call_function(aten.add.Tensor, (scaled, operands[1]))
    scaled.meta["val"] = shifted.meta["val"] = norm.meta["val"]
    return shifted


def _along(values: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    """View [C] so that it broadcasts along one dimension of a tensor of ``ndim`` dimensions."""
    return values.view([-1 if axis == dim else 1 for axis in range(ndim)])
