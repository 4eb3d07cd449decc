"""Who takes part in a comparison on a CPU: engines of this project, and what one would pick instead.

All start from one network and one set of calibration images. Peers:

    torch                          eager mode, channels last
    torch inductor                 torch.compile with freezing
    torch fx fbgemm, onednn, ...   FX graph mode quantization, its default settings for the engine
    torchao inductor               PT2E with the X86 inductor quantizer, compiled with freezing
    onnxruntime                    the file of torch.onnx.export
    quantize_static                ONNX Runtime's own: QDQ, u8 activations, s8 weights per channel, ranges by min-max
    openvino                       its model of the same file, computed in bf16 where the CPU has that
    nncf                           its quantize(), default settings, on OpenVINO
"""

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsweep.config.backend import InferenceFn
from bitsweep.config.precision import Precision
from bitsweep.data.preprocessing import preprocess
from bitsweep.results import Array, Shape, Splits
from bitsweep.runtime.allocation import keep_freed_memory
from bitsweep.runtime.environment import current_cpu, version_of

if TYPE_CHECKING:
    import torch

CONF = Path(__file__).parents[1] / "conf"
REFERENCE = "torch fp32"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every contestant is given.

    Attributes:
        network: in float32 and evaluation mode; each has its own copy.
        splits: the training images are for calibration, all of them.
        input_shape: channels, height and width of the images that the network sees.
        batch: images that are run at a time where the number is fixed when the model is built.
        folder: empty, for files.
    """

    network: "torch.nn.Module"
    splits: Splits
    input_shape: Shape
    batch: int
    threads: int
    folder: Path

    @cached_property
    def images(self) -> Array:
        """The calibration images as the network sees them, float32 [N, 3, H, W]."""
        return preprocess(
            self.splits.train.images, input_shape=self.input_shape, mean_C=self.splits.mean_C, std_C=self.splits.std_C
        ).numpy()


#: Builds what a contestant runs.
Build = Callable[[Task], InferenceFn]


class LeftOut(Exception):
    """Why a contestant does not take part."""


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own; a sentence if that ends without an answer."""
    context = multiprocessing.get_context("spawn")
    lane, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    answer = first_answer(lane, process)
    process.join()
    return answer


def first_answer(lane: Connection, process: BaseProcess) -> Any:
    """What a process sends first; a sentence if it ends before."""
    try:
        return lane.recv()
    except EOFError:
        process.join()
        return f"its process ended with code {process.exitcode}"


def _answer(lane: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    lane.send(function(*arguments))


def built(build: Build, task: Task) -> InferenceFn | str:
    """What a contestant runs, or in one line why it does not take part; what it prints meanwhile is dropped."""
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(task.threads)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            infer = build(task)
            infer(task.images[: task.batch])
    except LeftOut as reason:
        return str(reason)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return infer


def ours() -> "dict[str, Build]":
    """Every engine of this project that is more than a simulation, in fp32, bf16 and int8."""
    engines = [file.stem for file in sorted((CONF / "backend").glob("*.yaml")) if file.stem != "reference"]
    return {
        f"bitsweep {engine} {precision}": Ours(engine, precision)
        for engine in engines
        for precision in ("fp32", "bf16", "int8")
    }


class Ours:
    """An engine of this project with ``method=ptq`` (none for fp32) and default settings."""

    def __init__(self, backend: str, precision: str) -> None:
        self.backend, self.precision = backend, precision

    def __call__(self, task: Task) -> InferenceFn:
        backend, precision = configured("backend", self.backend), configured("precision", self.precision)
        assert isinstance(precision, Precision)
        if version_of(backend.package) == "absent":
            raise LeftOut(f"{backend.package} is not installed")
        if reason := backend.unsupported(precision):
            raise LeftOut(reason)
        scheme = backend.scheme(precision, current_cpu())
        if precision.weights == "bfloat16" and scheme.arithmetic != "bfloat16":
            raise LeftOut(scheme.why)
        if scheme.weights == "float32":
            method = configured("method", "none")
        else:
            method = configured("method", "ptq", calibration_images=len(task.splits.train))
        keep_freed_memory()  # as the stage that compresses does
        network = task.network if scheme.weights == "float32" else exported(task)
        compression = method.compress(network, task.splits, input_shape=task.input_shape, scheme=scheme, seed=0)
        backend.lower(compression.program, task.folder)
        infer: InferenceFn = backend.load(task.folder, threads=task.threads)
        return infer


def exported(task: Task) -> "torch.nn.Module":
    """The network as a cell finds it that is compressed: in the file of its fp32 twin."""
    from bitsweep.graphs import program, tracing

    file, normalized = program_file(task)
    return tracing.Exported(program.load_program(file), normalized=normalized)


def program_file(task: Task) -> tuple[Path, tuple[str, ...]]:
    """The file of the fp32 twin, and which weights a normalisation was folded into: made once for all its cells."""
    from bitsweep.graphs import program

    precision, file = configured("precision", "fp32"), task.folder / "program.pt2"
    scheme = configured("backend", "reference").scheme(precision, current_cpu())
    twin = configured("method", "none").compress(
        task.network, task.splits, input_shape=task.input_shape, scheme=scheme, seed=0
    )
    program.save_program(twin.program, file)
    return file, twin.normalized


def configured(group: str, choice: str, **knobs: Any) -> Any:
    """A plug-in with the settings of its YAML file, but for the knobs that are given."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.load(CONF / group / f"{choice}.yaml"), _convert_="all", **knobs)


# --------------------------------------------------------------------------- PyTorch


def eager(task: Task) -> InferenceFn:
    """PyTorch itself."""
    import torch

    return torch_runner(task.network.to(memory_format=torch.channels_last))


def inductor(task: Task) -> InferenceFn:
    """torch.compile."""
    import torch

    torch._inductor.config.freezing = True
    return torch_runner(torch.compile(task.network.to(memory_format=torch.channels_last)))


def fx(engine: str) -> Build:
    """FX graph mode quantization for an engine."""

    def build(task: Task) -> InferenceFn:
        import torch
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.backends.quantized.engine = engine
        example = channels_last(task.images[:1])
        prepared = prepare_fx(task.network, get_default_qconfig_mapping(engine), (example,))
        with torch.inference_mode():
            for images in batches(task.images, CALIBRATION_BATCH):
                prepared(channels_last(images))
            traced = torch.jit.freeze(torch.jit.trace(convert_fx(prepared), example, check_trace=False))
        return torch_runner(traced)

    return build


def torchao_inductor(task: Task) -> InferenceFn:
    """torchao's PT2E flow, compiled."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    network = task.network.to(memory_format=torch.channels_last)
    exported = torch.export.export(network, (channels_last(task.images[: task.batch]),)).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    with torch.inference_mode():
        for images in batches(task.images, task.batch):
            prepared(channels_last(images))
        torch._inductor.config.freezing = True
        return torch_runner(torch.compile(convert_pt2e(prepared)), batch=task.batch)


def torch_runner(network: "Callable[[torch.Tensor], torch.Tensor]", *, batch: int = 0) -> InferenceFn:
    """A network as a function of images; of that many at a time, if it takes no others."""
    import torch

    def run(images: Array) -> Array:
        with torch.inference_mode():
            parts = batches(images, batch or len(images))
            return np.concatenate([network(channels_last(part)).numpy() for part in parts])

    return run


def channels_last(images: Array) -> "torch.Tensor":
    """Images [N, 3, H, W] as PyTorch's kernels prefer them."""
    import torch

    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last)


#: Images that are watched at a time where the number is free.
CALIBRATION_BATCH = 32


def batches(images: Array, size: int) -> Iterator[Array]:
    """Images, so many at a time; the last part may be smaller."""
    return (images[start : start + size] for start in range(0, len(images), size))


# --------------------------------------------------------------------------- ONNX Runtime


def onnx_file(task: Task) -> Path:
    """What torch.onnx.export makes of the network."""
    import torch

    torch.onnx.export(
        task.network, (torch.from_numpy(task.images[:2]),), task.folder / "plain.onnx", dynamo=True,
        external_data=False, input_names=["images"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    return task.folder / "plain.onnx"


def onnxruntime(task: Task) -> InferenceFn:
    """ONNX Runtime in fp32."""
    return session_runner(onnx_file(task), task)


def session_runner(file: Path, task: Task) -> InferenceFn:
    """A file as a function, in a session with ONNX Runtime's defaults."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.log_severity_level = 3
    # Threads that spin after a run would slow the contestant whose turn is next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


#: Images that ONNX Runtime's calibration by entropy gets at most: it holds all activations of all of them in memory.
ENTROPY_IMAGES = 64


def quantize_static(ranges: str) -> Build:
    """ONNX Runtime's own static quantization, as its documentation recommends it for x86.

    Args:
        ranges: name of a ``CalibrationMethod``.
    """

    def build(task: Task) -> InferenceFn:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                images = task.images if ranges == "MinMax" else task.images[:: -(-len(task.images) // ENTROPY_IMAGES)]
                self.feeds: Iterator[dict[str, Array]] = iter([{"images": image[None]} for image in images])

            def get_next(self) -> dict[str, Array] | None:
                return next(self.feeds, None)

        prepared, target = task.folder / "prepared.onnx", task.folder / "model.onnx"
        quant_pre_process(onnx_file(task), prepared)
        quantization.quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=current_cpu().saturates_u8s8,
            calibrate_method=quantization.CalibrationMethod[ranges],
        )
        return session_runner(target, task)

    return build


# --------------------------------------------------------------------------- OpenVINO


def openvino(task: Task) -> InferenceFn:
    """OpenVINO in fp32."""
    return compiled_runner(openvino_model(task), task)


def nncf(preset: str = "") -> Build:
    """NNCF's post-training quantization on OpenVINO.

    Args:
        preset: name of a ``QuantizationPreset``; empty for the one that it chooses.
    """

    def build(task: Task) -> InferenceFn:
        needed("nncf")
        import nncf

        dataset = nncf.Dataset([image[None] for image in task.images])
        chosen = {"preset": nncf.QuantizationPreset[preset]} if preset else {}
        return compiled_runner(
            nncf.quantize(openvino_model(task), dataset, subset_size=len(task.images), **chosen), task
        )

    return build


def openvino_model(task: Task) -> Any:
    """The network as OpenVINO reads it."""
    needed("openvino")
    import openvino

    return openvino.Core().read_model(onnx_file(task))


def compiled_runner(model: Any, task: Task) -> InferenceFn:
    """A model as a function of batches of a fixed size; larger ones are run in parts."""
    import openvino

    model.reshape([task.batch, *model.input(0).get_partial_shape()[1:]])
    settings = {"INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Array) -> Array:
        return np.concatenate([request.infer([part])[0].copy() for part in batches(images, task.batch)])

    return run


def needed(package: str) -> None:
    """Leave a contestant out whose package is not there."""
    if importlib.util.find_spec(package) is None:
        raise LeftOut(f"{package} is not installed; run: pip install {package}")


PEERS: dict[str, Build] = {
    REFERENCE: eager,
    "torch inductor fp32": inductor,
    "torch fx fbgemm int8": fx("fbgemm"),
    "torch fx onednn int8": fx("onednn"),
    "torch fx qnnpack int8": fx("qnnpack"),
    "torchao inductor int8": torchao_inductor,
    "onnxruntime fp32": onnxruntime,
    "quantize_static int8": quantize_static("MinMax"),
    "openvino fp32": openvino,
    "nncf int8": nncf(),
}
