"""Programs as PyTorch runs them: op by op. For a Q/DQ program this is what the compressed network means."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from bitsweep.config.backend import Device, InferenceFn, OnDevice
from bitsweep.errors import damaged, require_images
from bitsweep.graphs.archive import load_archive, save_archive
from bitsweep.graphs.constants import folded_graph
from bitsweep.graphs.ops import quantized, set_attribute
from bitsweep.graphs.packing import pack, unpack
from bitsweep.graphs.qdq_pairs import fuse_pairs
from bitsweep.results import Array, OpProfile, Shape


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program to a ``torch.export`` file, with codes of up to 6 bits packed."""
    stored = dict(program.state_dict)
    for name, (node, lo, hi) in _narrow_codes(program).items():
        stored[name] = pack(stored[name], lo, hi)
        assert stored[name].dtype != node.meta["val"].dtype
    save_archive(_with_state(program, stored), path)


def load_program(path: Path) -> ExportedProgram:
    """Read a program from a ``torch.export`` file that ``save_program`` wrote.

    Raises:
        StoreError: the file is missing, damaged, of another version of PyTorch, or holds more than data.
    """
    try:
        program = load_archive(path)
        stored = dict(program.state_dict)
        for name, (node, lo, hi) in _narrow_codes(program).items():
            meant = node.meta["val"]
            stored[name] = unpack(stored[name], meant.shape, lo, hi, meant.dtype)
        return _with_state(program, stored)
    except Exception as error:
        raise damaged(path, error) from error


def logits_of(program: ExportedProgram, batches: Iterable[Array]) -> Array:
    """Run a program over many images.

    Args:
        batches: float32 images [N, C, H, W], a batch at a time.

    Returns:
        float32 logits [N, K] of all images.
    """
    infer = inference_fn(program)
    return np.concatenate([infer(images) for images in batches])


def looks_at_batches(program: ExportedProgram) -> bool:
    """Whether a program chooses ranges while it runs: for a whole batch, so that images depend on those beside them."""
    return bool(program.graph.find_nodes(op="call_function", target=quantized.choose_qparams.tensor))


def on_device(program: ExportedProgram, device: str) -> ExportedProgram:
    """A program on a device: itself for the CPU, else a copy, because PyTorch moves programs in place."""
    return program if device == "cpu" else move_to_device_pass(copy.deepcopy(program), device)


def inference_fn(
    program: ExportedProgram, *, memory_format: torch.memory_format = torch.contiguous_format, device: Device = "cpu"
) -> InferenceFn:
    """A program as a function of images, on as many threads as PyTorch is set to.

    What depends on parameters alone, such as the dequantization of weights, is computed here and not in every run.

    Args:
        memory_format: how images and the weights of 2-d convolutions are laid out in memory.
        device: where it runs.
    """
    graph, shape = _laid_out(program, memory_format, device), image_shape(program)

    def run(images: Array) -> Array:
        require_images(images, shape)
        with torch.inference_mode():
            logits = graph(torch.from_numpy(images).to(device).contiguous(memory_format=memory_format))
        result: Array = logits.cpu().numpy()
        return result

    return run


def on_gpu(program: ExportedProgram, images: Array, *, memory_format: torch.memory_format) -> OnDevice:
    """A run of a program on a batch in the GPU's memory."""
    graph = _laid_out(program, memory_format, "cuda")
    batch = torch.from_numpy(images).to("cuda").contiguous(memory_format=memory_format)

    def queue() -> None:
        with torch.inference_mode():
            graph(batch)

    return OnDevice(queue=queue, stream=torch.cuda.current_stream().cuda_stream)


def _laid_out(program: ExportedProgram, memory_format: torch.memory_format, device: Device) -> GraphModule:
    """Folded graph of a program on a device, fast to run, with weights of 2-d convolutions in a memory format."""
    graph = folded_graph(on_device(program, device))
    fuse_pairs(graph)
    for path, value in dict(graph.named_buffers()).items():
        if value.ndim == 4:
            set_attribute(graph, path, value.contiguous(memory_format=memory_format))
    return graph


def profile_of(program: ExportedProgram, images: Array) -> tuple[OpProfile, ...]:
    """The operations that PyTorch executes for one batch, all of them in float arithmetic."""
    recorder = _Recorder(folded_graph(program))
    with torch.no_grad():
        recorder.run(torch.from_numpy(images))
    return tuple(recorder.kernels)


def _narrow_codes(program: ExportedProgram) -> dict[str, tuple[Node, int, int]]:
    """Buffers with codes of up to 6 bits: path -> the node that uses them, smallest and largest code."""
    found = {}
    for node in program.graph.nodes:
        if node.target not in (quantized.dequantize_per_tensor.default, quantized.dequantize_per_channel.default):
            continue
        lo, hi = node.args[-3:-1]
        path = program.graph_signature.inputs_to_buffers.get(node.args[0].name)
        if path and (hi - lo).bit_length() <= 6:
            found[path] = node.args[0], lo, hi
    return found


def _with_state(program: ExportedProgram, state: dict[str, torch.Tensor]) -> ExportedProgram:
    """The same program with other tensors."""
    changed = copy.copy(program)
    changed._state_dict = state
    return changed


def image_shape(program: ExportedProgram) -> Shape:
    """C, H and W of the images that a program takes."""
    (name,) = program.graph_signature.user_inputs
    (images,) = (node for node in program.graph.find_nodes(op="placeholder") if node.name == name)
    channels, height, width = map(int, images.meta["val"].shape[1:])
    return channels, height, width


class _Recorder(Interpreter):
    """Runs a graph and records every operation with its multiply-accumulates."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.kernels: list[OpProfile] = []

    def run_node(self, n: Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        if n.op == "call_function":
            macs = counter.get_total_flops() // 2
            self.kernels.append(OpProfile(name=n.name, op=str(n.target), macs=macs, integer=False))
        return result
