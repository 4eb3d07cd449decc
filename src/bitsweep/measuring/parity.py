"""Where an engine leaves the reference: layer by layer, from the values in between.

The engine runs the same program with all quantized tensors as its output: flattened, and joined end to end. So this
works with any engine, through its own lowering.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.config.backend import Backend
from bitsweep.graphs import ops
from bitsweep.graphs.lifting import program_of
from bitsweep.graphs.ops import quantized
from bitsweep.graphs.program import inference_fn
from bitsweep.results import Array, Table

#: Least norm that errors are put in relation to.
TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Tapped:
    """A program whose output holds its intermediate values.

    Attributes:
        program: from float32 images [N, C, H, W] to float32 [N, sum of sizes]: the taps, flattened, end to end.
        names, sizes: of the taps in the order in which they run, the logits last; values for one image.
    """

    program: ExportedProgram
    names: tuple[str, ...]
    sizes: tuple[int, ...]


def tap(program: ExportedProgram) -> Tapped:
    """Let a program return its quantized activations, or outputs of its layers where no activation is quantized."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    (output,) = graph.graph.find_nodes(op="output")
    (logits,) = output.all_input_nodes
    tapped = {_source(node): node for node in graph.graph.nodes if _is_dequantized_activation(node)}
    if not tapped:
        tapped = {node.name: node for node in graph.graph.nodes if ops.is_layer(node)}
    tapped = {name: node for name, node in tapped.items() if node is not logits and _by_image(node, logits)}
    tapped |= {"logits": logits}
    with graph.graph.inserting_before(output):
        flat = [graph.graph.call_function(ops.aten.flatten.using_ints, (node, 1)) for node in tapped.values()]
        output.args = (graph.graph.call_function(ops.aten.cat.default, (flat, 1)),)
    graph.recompile()
    return Tapped(
        program=program_of(graph),
        names=tuple(tapped),
        sizes=tuple(ops.values_of_an_image(node.meta["val"]) for node in tapped.values()),
    )


def divergence(program: ExportedProgram, backend: Backend, images: Array, *, threads: int) -> Table:
    """How far an engine is from the reference after every layer.

    Args:
        program: as the engine lowers it.
        images: float32 [N, C, H, W]; a few are enough.

    Returns:
        Table ``divergence``: a row for each tapped tensor, with its relative error (root of the squared difference by
        the squared reference) and the share of its values that differ.

    Raises:
        BitsweepError: the engine does not take the program with its values in between as outputs.
    """
    tapped = tap(program)
    with tempfile.TemporaryDirectory() as scratch:
        backend.lower(tapped.program, Path(scratch))
        engine = backend.load(Path(scratch), threads=threads)(images)
    return compare(inference_fn(tapped.program)(images), engine, tapped.names, tapped.sizes)


def compare(reference: Array, engine: Array, names: Sequence[str], sizes: Sequence[int]) -> Table:
    """The table of two outputs, [N, sum of sizes] each, of the same tapped program."""
    rows, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        meant = reference[:, start : start + size].astype(np.float64)
        off = engine[:, start : start + size] - meant
        rows.append(
            (name, float(np.linalg.norm(off)) / max(float(np.linalg.norm(meant)), TINY), float((off != 0).mean()))
        )
        start += size
    return Table(name="divergence", columns=("tensor", "relative_error", "share_that_differs"), rows=tuple(rows))


def first_fault(table: Table, *, least_sqnr_db: float) -> str:
    """Where the engine is first further from the reference than that, in words; empty where it nowhere is."""
    for name, error, _ in table.rows:
        if not float(error) <= 10 ** (-least_sqnr_db / 20):
            return f"the engine leaves the reference at {name}: relative error {float(error):.2g}"
    return ""


def _by_image(node: Node, logits: Node) -> bool:
    """Whether a tensor has a row for each image, as the logits have: windows and sequences may lie otherwise."""
    first, images = (str(each.meta["val"].shape[0]) for each in (node, logits))
    return first == images


def _is_dequantized_activation(node: Node) -> bool:
    return node.target is quantized.dequantize_per_tensor.default and not ops.reads_attribute(node.args[0])


def _source(dequantize: Node) -> str:
    """The operation whose result an activation's codes hold."""
    (quantize, *_) = dequantize.all_input_nodes
    return quantize.all_input_nodes[0].name if quantize.all_input_nodes else quantize.name
