"""What engines with kernels for an NVIDIA GPU promise there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.export import ExportedProgram

from bitsweep import stats
from bitsweep.backends.inductor.backend import Inductor
from bitsweep.backends.onnxruntime.backend import OnnxRuntime
from bitsweep.backends.torch.backend import Reference, TorchEager
from bitsweep.backends.torch_tensorrt.backend import TorchTensorRt
from bitsweep.config.backend import Backend
from bitsweep.config.precision import Precision
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.errors import DataError
from bitsweep.graphs.program import logits_of
from bitsweep.measuring.latency import measure_latency
from bitsweep.measuring.memory import measure_memory
from bitsweep.measuring.passes import Subject, load_measurement
from bitsweep.runtime import gpu
from bitsweep.runtime.environment import current_cpu
from bitsweep.targets.local import ThisMachine
from tests.devices import on_a_gpu

pytestmark = [pytest.mark.slow, on_a_gpu]

BACKENDS: list[Backend] = [
    Reference(name="reference", device="cuda"),
    TorchEager(name="torch", device="cuda"),
    Inductor(name="inductor", device="cuda"),
    OnnxRuntime(name="onnxruntime", device="cuda"),
    TorchTensorRt(name="torch_tensorrt"),
]
#: Signal-to-noise ratio that an engine keeps to the reference, which is computed by the CPU.
PARITY_DB = {"float32": 90, "float16": 40, "bfloat16": 25}
Lowered = Callable[[Backend, Precision], tuple[ExportedProgram, Path]]
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=[backend.name for backend in BACKENDS])


@each_backend
@pytest.mark.parametrize("kind", PARITY_DB)
def test_it_agrees_with_the_reference_at_any_batch(
    backend: Backend, kind: str, lowered: Lowered, images: np.ndarray, macs: int
) -> None:
    precision = Precision(name=kind, weights=kind, activations=kind)  # type: ignore[arg-type]
    scheme = backend.scheme(precision, current_cpu())
    program, artifact = lowered(backend, precision)
    infer = backend.load(artifact, threads=1)
    logits_NK = infer(images)
    assert (logits_NK.shape, logits_NK.dtype) == ((5, 10), np.float32)
    assert stats.sqnr_db(logits_of(program, [images]), logits_NK) > PARITY_DB[scheme.arithmetic]
    assert infer(images[:1]).argmax() == logits_NK[0].argmax()
    kernels = backend.profile(artifact, images[:1], threads=1)
    assert sum(kernel.macs for kernel in kernels) == macs
    assert not any(kernel.integer for kernel in kernels)
    with pytest.raises(DataError, match="images: float64"):
        infer(images.astype(np.float64))


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_rounded_only_if_asked_for(tf32: bool, fp32: Precision, lowered: Lowered) -> None:
    """In ONNX Runtime; PyTorch's settings are seen in ``tests/runtime/test_gpu.py``."""
    backend = OnnxRuntime(name="onnxruntime", device="cuda", tf32=tf32)
    _, artifact = lowered(backend, fp32)
    session = backend._session(artifact, threads=1)
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    assert session.get_provider_options()["CUDAExecutionProvider"]["use_tf32"] == str(int(tf32))


@pytest.mark.parametrize("backend", BACKENDS[1:], ids=[backend.name for backend in BACKENDS[1:]])
def test_its_own_time_and_memory_are_measured(
    backend: Backend, fp32: Precision, lowered: Lowered, images: np.ndarray, tmp_path: Path
) -> None:
    _, artifact = lowered(backend, fp32)
    batch = np.repeat(images, 200, axis=0)
    protocol = MeasurementProtocol(name="test", threads=1, batch_sizes=(len(batch),), blocks=6, block_s=0.02, repeats=0)
    subject = Subject(
        artifact=artifact,
        twin=artifact,
        backend=backend,
        protocol=protocol,
        scheme=backend.scheme(fp32, current_cpu()),
        target=ThisMachine(name="local"),
    )
    np.save(tmp_path / "examples.npy", batch)
    measure_latency(subject, examples=batch, folder=tmp_path)
    measure_memory(subject, examples=tmp_path / "examples.npy", folder=tmp_path)
    metrics = load_measurement(tmp_path).metrics
    # A latency contains the copies besides.
    assert 0 < metrics["device_p50_ms"] < metrics["latency_p50_ms"]
    assert metrics["peak_device_mb"] > batch.nbytes / 1e6
    assert len(np.load(tmp_path / "latency_samples.npz")[f"device_b{len(batch)}_ms"]) == 50


@pytest.mark.parametrize("backend", BACKENDS[1:], ids=[backend.name for backend in BACKENDS[1:]])
def test_a_larger_batch_takes_the_device_longer(
    backend: Backend, fp32: Precision, lowered: Lowered, images: np.ndarray
) -> None:
    _, artifact = lowered(backend, fp32)
    times_ms = []
    for batch in (images, np.repeat(images, 2000, axis=0)):
        loaded = backend.load_on_device(artifact, batch, threads=1)
        times_ms.append(np.median([gpu.elapsed_ms(loaded.queue, loaded.stream) for _ in range(10)]))
    assert times_ms[1] > 2 * times_ms[0]
