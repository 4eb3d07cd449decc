from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from bitsweep.config.precision import Grid
from bitsweep.graphs.lifting import program_of
from bitsweep.graphs.program import load_program, save_program
from bitsweep.graphs.tracing import export, trace
from bitsweep.quantization.calibration.ranges import minmax_range
from bitsweep.quantization.casting import cast
from bitsweep.quantization.placement import quantize_activations

SHAPE = (3, 8, 8)
IMAGES = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    """Paths that are no names in Python, two that differ in their dots alone, and weights that are read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("stem-0", nn.Conv2d(3, 4, 3, bias=False))
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
        self.inner_0 = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.get_submodule("stem-0")(x))
        x = self.inner(self.inner(x)) + self.inner_0(x)
        return self.head(x.reshape(x.shape[0], 4, -1).mean(2))


def on_codes(graph: GraphModule) -> GraphModule:
    """With activations on codes."""
    grid = Grid(bits=8, signed=False, symmetric=False, per_channel=False)
    return quantize_activations(graph, grid, minmax_range, [IMAGES])[0]


def in_halves(graph: GraphModule) -> GraphModule:
    """With bfloat16 arithmetic, in which every recorded type is another."""
    cast(graph, "bfloat16", "bfloat16")
    return graph


def as_it_is(graph: GraphModule) -> GraphModule:
    """In float."""
    return graph


def operations(program: ExportedProgram) -> list[tuple[Any, ...]]:
    """What a program calls, with types and shapes of the results."""
    values = [(node.target, node.meta["val"]) for node in program.graph.nodes if node.op == "call_function"]
    return [
        (target, value.dtype, tuple(map(str, value.shape[1:])))
        for target, value in values
        if isinstance(value, torch.Tensor)
    ]


@pytest.mark.parametrize("rewrite", [as_it_is, on_codes, in_halves])
def test_it_is_the_program_that_tracing_the_graph_again_yields(
    rewrite: Callable[[GraphModule], GraphModule], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    graph = rewrite(trace(Named(), input_shape=SHAPE))
    lifted, traced = program_of(graph), export(graph, input_shape=SHAPE)
    assert operations(lifted) == operations(traced)
    assert {name: value.dtype for name, value in lifted.state_dict.items()} == {
        name: value.dtype for name, value in traced.state_dict.items()
    }
    save_program(lifted, tmp_path / "program.pt2")
    for program in (lifted, load_program(tmp_path / "program.pt2")):
        for images in (IMAGES, IMAGES[:1]):
            torch.testing.assert_close(program.module()(images), traced.module()(images), rtol=0, atol=0)
