"""Weights of a graph as integer codes: a layer then takes dequantized ``weight_codes`` instead of ``weight``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import attribute, free_path, is_layer, quantized, set_attribute, tidy
from bitsweep.quantization import grids
from bitsweep.quantization.calibration.ranges import Range

ChooseWeightRange = Callable[[torch.Tensor, Grid], Range]


@dataclass(frozen=True, kw_only=True)
class Codes:
    """A tensor [C, ...] on a grid, with scale and zero point of shape [C] or []."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    grid: Grid

    @classmethod
    def from_float(cls, codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, grid: Grid) -> "Codes":
        """From integral floats within the grid."""
        return cls(codes=codes.to(grids.storage_dtype(grid)), scale=scale.float(), zero_point=zero_point, grid=grid)

    def times(self, factor_C: torch.Tensor) -> "Codes":
        """The same codes for values that are so many times as large; one factor for all where there is one scale."""
        factor = factor_C if self.scale.ndim else factor_C[0]
        return replace(self, scale=(self.scale.double() * factor).float())

    @property
    def values(self) -> torch.Tensor:
        """What the codes stand for, float32."""
        return grids.dequantize(self.codes, self.scale, self.zero_point)


def nearest_codes(weight: torch.Tensor, grid: Grid, choose_range: ChooseWeightRange) -> Codes:
    """The code nearest to each weight, on the range that ``choose_range`` gives."""
    grid = grid.of_weights(weight.shape)
    scale, zero_point = grids.choose_qparams(*choose_range(weight, grid), grid)
    codes = grids.quantize(weight, scale, zero_point, grid)
    return Codes(codes=codes, scale=scale, zero_point=zero_point, grid=grid)


def round_weights(graph: GraphModule, choose_codes: Callable[[torch.Tensor], Codes]) -> dict[str, Codes]:
    """Move, in place, the weights of every convolution and linear layer onto a grid; biases stay as they are.

    Returns:
        The codes by the path of the weights, for ``store_codes``; until then the graph computes with their values.
    """
    weights = {str(node.args[1].target): node.args[1] for node in graph.graph.nodes if is_layer(node)}
    codes = {path: choose_codes(attribute(graph, node)) for path, node in weights.items()}
    for path, chosen in codes.items():
        set_attribute(graph, path, chosen.values)
    return codes


def store_codes(graph: GraphModule, codes: Mapping[str, Codes]) -> None:
    """Let, in place, layers of a graph take their weights from codes, by the path of the weights."""
    stored = dict[str, tuple[str, ...]]()
    for layer in [node for node in graph.graph.nodes if is_layer(node)]:
        path = str(layer.args[1].target)
        if path not in codes:
            continue
        if path not in stored:  # several layers may have the same weights
            stored[path] = _store(graph, path, codes[path])
        with graph.graph.inserting_before(layer):
            layer.replace_input_with(layer.args[1], _dequantize(graph, stored[path], codes[path]))
    tidy(graph)


def _store(graph: GraphModule, path: str, weight: Codes) -> tuple[str, ...]:
    """Keep codes beside the weights, and scales and zero points of channels; returns the paths."""
    # PyTorch dequantizes three times as fast with zero points of the type of the codes, but affine ones could wrap.
    zero_point = weight.zero_point.to(weight.codes.dtype) if weight.grid.symmetric else weight.zero_point
    parts = {"codes": weight.codes, "scale": weight.scale, "zero_point": zero_point}
    paths = []
    for part, value in parts.items() if weight.grid.per_channel else (("codes", weight.codes),):
        paths.append(free_path(graph, f"{path}_{part}"))
        set_attribute(graph, paths[-1], value)
    return tuple(paths)


def _dequantize(graph: GraphModule, paths: tuple[str, ...], weight: Codes) -> Node:
    grid, dtype = weight.grid, weight.codes.dtype
    read_codes, *channel_qparams = map(graph.graph.get_attr, paths)
    if not grid.per_channel:
        qparams = (weight.scale.item(), int(weight.zero_point), grid.lo, grid.hi, dtype)
        return graph.graph.call_function(quantized.dequantize_per_tensor.default, (read_codes, *qparams))
    return graph.graph.call_function(
        quantized.dequantize_per_channel.default, (read_codes, *channel_qparams, 0, grid.lo, grid.hi, dtype)
    )
