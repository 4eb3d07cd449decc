"""Float programs as engines of TensorRT, by Torch-TensorRT's converters: operation by operation, without ONNX between.

A program becomes one engine. Its network is strongly typed: every operation is computed in the type that the program
gives it, so that half precision means a program of halves.

The artifact is the engine as it is. ``torch_tensorrt.save`` would write it as base64, a third larger, and
``torch_tensorrt.dynamo.compile``, which makes what that saves, hands a program back as it was where nothing of it can
be converted. Lowering, converters and what runs the engine are the same.
"""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from bitsweep.config.backend import InferenceFn, OnDevice
from bitsweep.errors import CompressionError, damaged, first_line, require_images
from bitsweep.graphs.program import image_shape
from bitsweep.graphs.program import profile_of as profile_of_program
from bitsweep.results import Array, OpProfile

# Importing torch_tensorrt asks for the compute capability of a GPU: it is done where there must be one.

ENGINE, FACTS = "model.engine", "facts.json"
INPUT, OUTPUT = "images", "logits"


def build_engine(program: ExportedProgram, folder: Path, *, max_batch: int, tf32: bool) -> None:
    """Build the engine of a program on the GPU that is to run it, and write it with what running it needs to know.

    Args:
        max_batch: images that the engine takes at once; it is optimized for one.
        tf32: whether float32 layers may round what they multiply to 10 bits of mantissa.

    Raises:
        CompressionError: an operation cannot be converted, or TensorRT does not take the network.
    """
    from torch_tensorrt import Input
    from torch_tensorrt.dynamo import Debugger, convert_exported_program_to_serialized_trt_engine

    shape = image_shape(program)
    macs = sum(kernel.macs for kernel in profile_of_program(program, np.zeros((1, *shape), np.float32)))
    one, most = (1, *shape), (max_batch, *shape)
    images = Input(min_shape=one, opt_shape=one, max_shape=most, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Else the engine would not report the types of its layers.
            with Debugger(log_level="error", engine_builder_monitor=False, logging_dir=scratch):
                engine = convert_exported_program_to_serialized_trt_engine(
                    program,
                    arg_inputs=[images],
                    arg_input_binding_names=(INPUT,),
                    output_binding_names=OUTPUT,
                    disable_tf32=not tf32,
                    immutable_weights=True,
                    # Timings of other programs would choose this one's kernels.
                    timing_cache_path=f"{scratch}/timing_cache.bin",
                )
        except Exception as error:
            # That an operation has no converter is the cause of an error that shows the whole program.
            reason = first_line(error.__cause__ or error)
            raise CompressionError(f"Torch-TensorRT does not convert the program: {reason}") from error
    (folder / ENGINE).write_bytes(engine)
    (folder / FACTS).write_text(json.dumps({"shape": shape, "macs": macs}))


def inference_fn(folder: Path, *, max_batch: int) -> InferenceFn:
    """An engine as a function of images, which are copied to the GPU and logits back.

    Raises:
        StoreError: a file is missing or truncated, or the engine is another GPU's or another version's.
    """
    module, facts = _load(folder)
    shape = tuple(facts["shape"])

    def run(images: Array) -> Array:
        require_images(images, shape)
        parts = torch.split(torch.from_numpy(images).to("cuda"), max_batch)
        logits: Array = torch.cat([module(part) for part in parts]).cpu().numpy()
        return logits

    return run


def on_gpu(folder: Path, images: Array, *, max_batch: int) -> OnDevice:
    """A run of an engine on a batch in the GPU's memory."""
    module, _ = _load(folder)
    parts = torch.split(torch.from_numpy(images).to("cuda"), max_batch)

    def queue() -> None:
        for part in parts:
            module(part)

    return OnDevice(queue=queue, stream=torch.cuda.current_stream().cuda_stream)


def profile_of(folder: Path, images: Array) -> tuple[OpProfile, ...]:
    """The layers of an engine with their types, as it reports them itself."""
    module, facts = _load(folder)
    return described(module.get_layer_info(), macs=facts["macs"] * len(images))


def described(layers: str, *, macs: int) -> tuple[OpProfile, ...]:
    """The kernels of an engine.

    Args:
        layers: how TensorRT's inspector describes them in detail, as JSON.
        macs: multiply-accumulates of all of them. TensorRT names what it fuses anew, so that these belong to no layer.
    """
    found = [
        OpProfile(name=layer["Name"], op=f"{layer['LayerType']} {_type(layer)}".strip(), macs=0, integer=False)
        for layer in json.loads(layers)["Layers"]
    ]
    return (*found, OpProfile(name="all layers", op="multiply-accumulates", macs=macs, integer=False))


def _type(layer: dict[str, Any]) -> str:
    """Type of the first input tensor of a layer, by a key that differs among versions; empty where it has none."""
    read = layer["Inputs"][0] if layer["Inputs"] else {}
    return next((str(value) for key, value in read.items() if "Datatype" in key), "")


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """An engine in the GPU's memory, as a module of PyTorch, and its facts."""
    from torch_tensorrt.dynamo import CompilationSettings
    from torch_tensorrt.dynamo.runtime import TorchTensorRTModule

    path = folder / ENGINE
    try:
        facts = json.loads((folder / FACTS).read_text())
        module = TorchTensorRTModule(path.read_bytes(), [INPUT], [OUTPUT], settings=CompilationSettings())
        module.setup_engine()  # which the constructor leaves out for an empty file
    except Exception as error:
        raise damaged(path, error) from error
    return module, facts
