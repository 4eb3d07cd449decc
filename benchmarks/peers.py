"""What one would pick on a CPU instead of this project, from the same network and the same calibration images.

torch                          eager mode, channels last
torch inductor                 torch.compile with freezing
torch fx fbgemm, onednn, ...   FX graph mode quantization, its default settings for the engine
torchao inductor               PT2E with the X86 inductor quantizer, compiled with freezing
onnxruntime                    the file of torch.onnx.export
quantize_static                ONNX Runtime's own: QDQ, u8 activations, s8 weights per channel, ranges by min-max
openvino                       its model of the same file, computed in bf16 where the CPU has that
nncf                           its quantize(), default settings, on OpenVINO
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contestants import Build, LeftOut, Task

from bitsweep.config.backend import InferenceFn
from bitsweep.results import Array
from bitsweep.runtime.environment import current_cpu

if TYPE_CHECKING:
    import torch

REFERENCE = "torch fp32"


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
