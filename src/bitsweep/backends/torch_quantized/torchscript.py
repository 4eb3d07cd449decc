"""Graphs as TorchScript files: called by its interpreter, a small quantized kernel takes a quarter of the time.

Reading and running a file needs nothing but PyTorch.
"""

import copy
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.profiler import profile
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bitsweep.config.backend import InferenceFn
from bitsweep.errors import damaged, require_images
from bitsweep.graphs.ops import set_attribute
from bitsweep.results import Array, OpProfile

aten, quantized = torch.ops.aten, torch.ops.quantized
#: Kernels with packed weights -> what unpacks these.
UNPACK: dict[Any, Any] = {
    **dict.fromkeys((quantized.conv2d.new, quantized.conv2d_relu.new), quantized.conv2d_unpack),
    **dict.fromkeys(
        (quantized.linear.default, quantized.linear_relu.default, quantized.linear_dynamic.default),
        quantized.linear_unpack,
    ),
}
LAYOUT = torch.channels_last
#: Runs of a batch whose median is the time of a kernel.
TIMED_RUNS = 9
#: Name inside a file under which C, H and W of the images are.
SHAPE = "image_shape.json"


def save_script(graph: GraphModule, path: Path, *, image_shape: tuple[int, ...]) -> None:
    """Write a graph that takes any number of float32 images [N, C, H, W] to a file; its 4-d buffers channels last."""
    plain = GraphModule(graph, copy.deepcopy(graph.graph))
    plain.graph.set_codegen(CodeGen())
    (output,) = plain.graph.find_nodes(op="output")
    output.args = tuple(output.all_input_nodes)
    _ask_for_sizes(plain)
    plain.recompile()
    for path_inside, value in (*plain.named_parameters(), *plain.named_buffers()):
        if value.ndim == 4:
            set_attribute(plain, path_inside, value.contiguous(memory_format=LAYOUT))
    images = torch.zeros(2, *image_shape).contiguous(memory_format=LAYOUT)
    with torch.no_grad(), _without_advice():
        script = torch.jit.trace(plain, (images,), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(script, path, _extra_files={SHAPE: json.dumps(image_shape)})


def _ask_for_sizes(graph: GraphModule) -> None:
    """Let, in place, whatever computes with the number of images call PyTorch as Python does.

    What is traced then asks for that number in every run; calls of the operations themselves would keep that of the
    images which the graph is traced with.
    """
    for node in graph.graph.nodes:
        if node.target == aten.sym_size.int:
            node.op, node.target = "call_method", "size"
        elif isinstance(node.target, OpOverload) and any(map(_is_size, node.all_input_nodes)):
            name = node.target.overloadpacket.__name__
            node.target = getattr(torch.Tensor, name, None) or getattr(torch, name)


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def load_script(path: Path) -> InferenceFn:
    """Read a file that ``save_script`` wrote, to run on as many threads as PyTorch is set to.

    What depends on parameters alone is computed here, once.

    Raises:
        StoreError: the file is missing or damaged.
    """
    script, image_shape = _read(path)

    def run(images: Array) -> Array:
        require_images(images, image_shape)
        with torch.inference_mode():
            logits: Array = script(torch.from_numpy(images).contiguous(memory_format=LAYOUT)).numpy()
        return logits

    return run


def executed(path: Path, images: Array) -> tuple[OpProfile, ...]:
    """The operations that PyTorch executes for one batch, as its dispatcher sees them and its profiler times them."""
    script, _ = _read(path)
    batch = torch.from_numpy(images).contiguous(memory_format=LAYOUT)
    with torch.no_grad():
        # The interpreter watches a first run, and rewrites its graph in the second.
        for _ in range(3):
            script(batch)
        with _Recorder(len(batch)) as recorder:
            script(batch)
        with profile(use_kineto=False) as profiler:
            for _ in range(TIMED_RUNS):
                script(batch)
    times_ms = _times_ms([kernel.op for kernel in recorder.kernels], profiler.function_events)
    return tuple(replace(kernel, ms=ms) for kernel, ms in zip(recorder.kernels, map(float, times_ms), strict=True))


def _times_ms(ops: Sequence[str], events: Iterable[Any]) -> Array:
    """How long each operation of a run took, the median of some runs; what it calls itself is among the events."""
    times: list[float] = []
    for event in sorted(events, key=lambda event: float(event.time_range.start)):
        namespace, name, *_ = ops[len(times) % len(ops)].split(".")
        if event.name == f"{namespace}::{name}":
            times.append(event.cpu_time / 1e3)
    if len(times) != TIMED_RUNS * len(ops):
        return np.zeros(len(ops))
    median: Array = np.median(np.reshape(times, (TIMED_RUNS, -1)), axis=0)
    return median


def _read(path: Path) -> tuple[Any, tuple[int, ...]]:
    about = {SHAPE: ""}
    try:
        with _without_advice():
            script = torch.jit.load(path, _extra_files=about)  # type: ignore[no-untyped-call]
            script = torch.jit.freeze(script.eval())
    except (RuntimeError, ValueError, OSError) as error:
        raise damaged(path, error) from error
    return script, tuple(json.loads(about[SHAPE]))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without the advice to use ``torch.export``, which has no form that is as fast for kernels this small."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        yield


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation with its multiply-accumulates."""

    def __init__(self, images: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.images = images
        self.kernels: list[OpProfile] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        op, integer = str(func).removesuffix(".default"), func.namespace == "quantized"
        if isinstance(result, Tensor) and result.is_quantized:
            integer = func is not aten.quantize_per_tensor.default
        macs = 0
        if func in UNPACK:
            # Rows beyond the images' own only give the kernel its scale.
            macs = result[: self.images].numel() * UNPACK[func](args[1])[0][0].numel()
        elif func.overloadpacket in flop_registry:
            macs = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result) // 2
        self.kernels.append(OpProfile(name=f"{op}_{len(self.kernels)}", op=op, macs=macs, integer=integer))
        return result
