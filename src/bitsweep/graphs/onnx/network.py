"""ONNX graphs as networks of PyTorch: their weights as parameters, their nodes run one after the other."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitsweep.errors import BitsweepError, CompressionError, ConfigError, first_line
from bitsweep.graphs.any_batch import any_batch
from bitsweep.graphs.onnx.fusing import fused
from bitsweep.graphs.onnx.integer_operators import with_pairs
from bitsweep.graphs.onnx.operators.table import OPERATORS
from bitsweep.graphs.onnx.reading import OnnxGraph, OnnxNode, read_onnx, require_computed
from bitsweep.graphs.onnx.rewriting import pruned
from bitsweep.graphs.onnx.values import Operator, Value, as_constant, as_value
from bitsweep.results import Array

#: What is not computed beforehand: the codes of weights stay what they are.
_KEPT = ("DequantizeLinear", "com.microsoft.DequantizeLinear", "Linear")
#: Names of what layers learn, in the order of their inputs after the first.
_LEARNED = {
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    "PRelu": ("weight",),
}


class OnnxNetwork(nn.Module):
    """A graph of float operations, quantizations and dequantizations that PyTorch runs, traces and trains.

    Where the file leaves the number of images open, it takes any.

    Attributes:
        shape: [N, C, H, W] of the images, None where the file leaves a size open.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        graph = fused(with_constants_computed(graph))
        self.shape = graph.shape
        self._images, self._outputs = graph.images, graph.outputs
        self._paths: dict[str, str] = {}
        self._given: dict[str, Array] = {}
        self._steps = [(node, OPERATORS[node.op], self._known(node, graph)) for node in graph.nodes]
        self._last_reads = _last_reads(graph)

    def forward(self, images: Tensor) -> Any:
        """The one output, or a dictionary of them by their names."""
        values: dict[str, Value] = {
            self._images: images,
            **{name: as_value(each) for name, each in self._given.items()},
        }
        for name, path in self._paths.items():
            parent, _, leaf = path.rpartition(".")
            values[name] = getattr(self.get_submodule(parent), leaf)
        for (node, operator, known), unread in zip(self._steps, self._last_reads, strict=True):
            values.update(_run(node, operator, known, values))
            for name in unread:
                del values[name]
        if missing := [name for name in self._outputs if name not in values]:
            raise ConfigError(f"nothing here computes its output {missing[0]}; export it with other operators")
        outputs = {name: values[name] for name in self._outputs}
        return outputs if len(outputs) > 1 else outputs[self._outputs[0]]

    def _known(self, node: OnnxNode, graph: OnnxGraph) -> dict[int, Array]:
        """Inputs of a node that it takes as arrays, by their position; the other constants become parameters."""
        operator, found = OPERATORS[node.op], {}
        for position, name in enumerate(node.inputs):
            if name not in graph.constants:
                continue
            value = graph.constants[name]
            if _taken_as_array(operator, position, value):
                found[position] = value
            elif isinstance(as_value(value), Tensor) or node.op in _KEPT:
                if name not in self._paths:
                    self._paths[name] = self._registered(node, position, name, value, graph)
            else:
                self._given[name] = value
        return found

    def _registered(self, node: OnnxNode, position: int, name: str, value: Array, graph: OnnxGraph) -> str:
        """Keep a tensor, and say where."""
        tensor = torch.from_numpy(np.array(value)) if value.dtype == np.int32 else as_value(value)
        assert isinstance(tensor, Tensor)
        tensor = tensor.clone()
        path = self._path(node, position, name, graph)
        parent: nn.Module = self
        *modules, leaf = path.split(".")
        for each in modules:
            if each not in parent._modules:
                parent.add_module(each, nn.Module())
            parent = parent.get_submodule(each)
        learned = tensor.is_floating_point() and node.op not in _KEPT[:2] and "running_" not in leaf
        if learned:
            parent.register_parameter(leaf, nn.Parameter(tensor))
        else:
            parent.register_buffer(leaf, tensor)
        return path

    def _path(self, node: OnnxNode, position: int, name: str, graph: OnnxGraph) -> str:
        """Where a tensor is kept: in its layer, if it is one of a layer's, else by its own name."""
        layer, at, suffix = node, position, ""
        if node.op in _KEPT[:2]:  # what codes mean is read by a layer
            suffix = ("", "_scale", "_zero_point")[position]
            layer = next((each for each in graph.nodes if node.outputs[0] in each.inputs), node)
            at = layer.inputs.index(node.outputs[0]) if layer is not node else position
        leaves = _LEARNED.get(layer.op, ("weight", "bias"))
        if OPERATORS[layer.op].weighted and 1 <= at <= len(leaves):
            parts = [*_layer_name(layer, graph), leaves[at - 1] + suffix]
        else:
            parts = _parts(name)
        path, number = ".".join(parts), 2
        while self._is_in_the_way(path):
            path, number = ".".join([*parts[:-2], "_".join([*parts[-2:-1], str(number)]), parts[-1]]), number + 1
        return path

    def _is_in_the_way(self, path: str) -> bool:
        """Whether a part of a path is something else in a network."""
        place: nn.Module = self
        *modules, leaf = path.split(".")
        for each in modules:
            if each in place._modules:
                place = place.get_submodule(each)
            else:
                return hasattr(place, each)
        return hasattr(place, leaf)


def _layer_name(layer: OnnxNode, graph: OnnxGraph) -> list[str]:
    """The module that a layer was: by the name of its weights, or else by its own."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    codes = makers.get(layer.inputs[1])
    weight = re.sub(r"(_quantized|\.transposed)$", "", codes.inputs[0] if codes and codes.inputs else layer.inputs[1])
    if weight.endswith(".weight"):
        return _parts(weight.removesuffix(".weight"))
    modules = [part for part in layer.name.split("/") if part]
    if len(modules) > 1:  # the last is the operation, and each of the others may name the one before again
        pairs = zip(modules[:-1], [*modules[1:-1], ""], strict=True)
        modules = [part for part, following in pairs if not following.startswith(f"{part}.")]
    return _parts("/".join(modules) or weight)


def _parts(name: str) -> list[str]:
    """A name as that of a module in others."""
    return [re.sub(r"\W", "_", part) for part in re.split(r"[./:]+", name) if part] or ["tensor"]


def network_of(path: Path) -> OnnxNetwork:
    """The network in a file.

    Raises:
        ConfigError: it is no ONNX file, or holds what nothing here computes.
    """
    graph = with_pairs(read_onnx(path))
    require_computed({node.op for node in graph.nodes}, OPERATORS)
    return OnnxNetwork(graph)


def for_any_batch(network: OnnxNetwork, images: tuple[int, int, int]) -> nn.Module:
    """A network that takes any number of images, also where the file was written for one number.

    Args:
        images: C, H and W of them.

    Raises:
        CompressionError: it works for that number alone.
    """
    batch = network.shape[0]
    if batch is None or _is_free(network, (batch, *images)):
        return network
    try:
        program = torch.export.export(network.eval(), (torch.zeros(batch, *images),))
    except Exception as error:
        raise CompressionError(f"torch.export cannot trace it: {first_line(error)}") from error
    return any_batch(program)


def _is_free(network: OnnxNetwork, shape: tuple[int, ...]) -> bool:
    """Whether images together give what each of them gives alone, although the file was written for fewer."""
    images = torch.randn(3 * shape[0], *shape[1:], generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            together = tree_leaves(network.eval()(images))[0]
            alone = [tree_leaves(network(part))[0] for part in torch.split(images, shape[0])]
    except ConfigError:
        return False
    return together.shape == torch.cat(alone).shape and torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-5)


def with_constants_computed(graph: OnnxGraph) -> OnnxGraph:
    """A graph in which what depends on constants alone is a constant."""
    constants, nodes = dict(graph.constants), []
    with torch.no_grad():
        for node in graph.nodes:
            if node.op in _KEPT or any(name and name not in constants for name in node.inputs):
                nodes.append(node)
                continue
            operator = OPERATORS[node.op]
            known = {
                at: constants[name]
                for at, name in enumerate(node.inputs)
                if name and _taken_as_array(operator, at, constants[name])
            }
            read = {name: as_value(constants[name]) for name in node.inputs if name}
            for name, value in _run(node, operator, known, read).items():
                constants[name] = as_constant(value)
    return pruned(replace(graph, nodes=tuple(nodes), constants=constants))


def _run(node: OnnxNode, operator: Operator, known: dict[int, Array], values: dict[str, Value]) -> dict[str, Value]:
    """The outputs of a node, by name.

    Raises:
        ConfigError: it does not take what it is given.
    """
    inputs: list[Any] = []
    for position, name in enumerate(node.inputs):
        if position in operator.fixed and name and position not in known:
            raise ConfigError(f"{node}: its input {name} depends on the images")
        inputs.append(known[position] if position in known else values[name] if name else None)
    while inputs and inputs[-1] is None:
        inputs.pop()
    try:
        result = operator.call(node, *inputs)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, BitsweepError) or torch.compiler.is_compiling():
            raise
        raise ConfigError(f"{node}: {first_line(error)}") from error
    results = result if isinstance(result, tuple) else (result,)
    return dict(zip(node.outputs, results, strict=False))


def _taken_as_array(operator: Operator, position: int, value: Array) -> bool:
    """Whether an operator takes a constant as an array, in place of a tensor."""
    return position in operator.fixed or (position in operator.numbers and value.size == 1)


def _last_reads(graph: OnnxGraph) -> list[list[str]]:
    """For each node the tensors that nobody reads after it."""
    last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs if name}
    made = {name for node in graph.nodes for name in node.outputs}
    found: list[list[str]] = [[] for _ in graph.nodes]
    for name, at in last.items():
        if name in made and name not in graph.outputs:
            found[at].append(name)
    return found
