"""Runs the artifact with OpenVINO."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino

#: Batch sizes that a loaded artifact is kept compiled for.
KEPT = 4
#: Where a file says what its floats are computed in: it is the exporter that writes this.
ARITHMETIC = ["framework", "float_arithmetic"]
#: Such types -> what OpenVINO calls the setting, and the capability of a CPU.
HALVES = {"bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


def load(folder: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from float32 [N, C, H, W] to logits [N, K]."""
    from batches import in_batches_of

    model = openvino.Core().read_model(folder / "model.onnx")
    run = inference_fn(model, threads=about["threads"])
    number = fixed_batch(model)
    return in_batches_of(number, run) if number else run


def inference_fn(model: openvino.Model, *, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The same of a model; the first run of each batch size compiles it."""

    @functools.lru_cache(maxsize=KEPT)
    def request_for(batch: int) -> openvino.InferRequest:
        return compiled_for(model, batch=batch, threads=threads).create_infer_request()

    return lambda images: request_for(len(images)).infer([images], share_inputs=True)[0]


def compiled_for(model: openvino.Model, *, batch: int, threads: int, profile: bool = False) -> openvino.CompiledModel:
    """A model made ready for batches of one size."""
    settings = {
        "INFERENCE_PRECISION_HINT": float_arithmetic(model),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # The protocol says which CPUs to run on, and as many threads as it asks for are to run.
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": True,
        "PERF_COUNT": profile,
    }
    model.reshape([batch, *model.input(0).get_partial_shape()[1:]])
    return openvino.Core().compile_model(model, "CPU", settings)


def float_arithmetic(model: openvino.Model) -> str:
    """What floats are computed in: the type that the file names, where this CPU has it, and else float32.

    OpenVINO itself would compute float32 in bfloat16 or float16 on such a CPU.
    """
    named = model.get_rt_info(ARITHMETIC).astype(str) if model.has_rt_info(ARITHMETIC) else ""
    setting, capability = HALVES.get(named, ("f32", "FP32"))
    return setting if capability in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def fixed_batch(model: openvino.Model) -> int:
    """How many images a file takes at a time; 0 for any number."""
    number = model.input(0).get_partial_shape()[0]
    return 0 if number.is_dynamic else int(number.get_length())
