"""What every engine of conf/backend promises."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.export import ExportedProgram

from bitsweep import stats
from bitsweep.config.backend import Backend
from bitsweep.config.precision import Precision
from bitsweep.errors import BitsweepError, DataError, MissingPackage, StoreError
from bitsweep.graphs.program import logits_of
from bitsweep.measuring.saturation import saturates
from bitsweep.runtime.environment import current_cpu
from bitsweep.runtime.fingerprint import settings
from tests.backends.conftest import skip_unless_lowered

pytestmark = pytest.mark.slow

CONF = Path(__file__).parents[2] / "conf"


def _choices(group: str) -> dict[str, Any]:
    """Every YAML of a config group, as its object."""
    files = sorted((CONF / group).glob("*.yaml"))
    return {file.stem: instantiate(OmegaConf.load(file), _convert_="all") for file in files}


BACKENDS, PRECISIONS = _choices("backend"), _choices("precision")
#: A backend for each way to load an artifact.
LOADERS = list({type(backend).load: name for name, backend in reversed(BACKENDS.items())}.values())
#: Backends whose arithmetic and threads are not the CPU's.
ON_A_GPU = {name for name, backend in BACKENDS.items() if backend.on_gpu}
RUNNABLE = [
    (name, precision.name)
    for name, backend in BACKENDS.items()
    for precision in PRECISIONS.values()
    # Machine code takes long to make, and is the same for narrower codes.
    if backend.unsupported(precision) is None and (backend.portable or precision.name in ("fp32", "int8"))
]
#: Signal-to-noise ratio that an engine keeps to the reference: its own rounding, in float and on integers.
PARITY_DB = {"float32": 100, "float16": 40, "bfloat16": 25, "integer": 30, "simulated": 60}

Lowered = Callable[[Backend, Precision], tuple[ExportedProgram, Path]]
each = pytest.mark.parametrize(("backend_name", "precision_name"), RUNNABLE, ids=map("-".join, RUNNABLE))
each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


@each
def test_it_agrees_with_the_reference_at_any_batch(
    backend_name: str, precision_name: str, lowered: Lowered, images: np.ndarray, macs: int
) -> None:
    backend, precision = BACKENDS[backend_name], PRECISIONS[precision_name]
    scheme = backend.scheme(precision, current_cpu())
    program, artifact = lowered(backend, precision)
    infer = backend.load(artifact, threads=1)
    logits_NK = infer(images)
    assert logits_NK.shape == (5, 10)
    assert logits_NK.dtype == np.float32
    assert stats.sqnr_db(logits_of(program, [images]), logits_NK) > PARITY_DB[scheme.arithmetic]
    np.testing.assert_allclose(infer(images[:1]), logits_NK[:1], rtol=1e-3, atol=1e-4)

    kernels = backend.profile(artifact, images[:1], threads=1)
    assert sum(kernel.macs for kernel in kernels) == macs
    left = sum(kernel.macs for kernel in kernels if not kernel.integer)
    # XNNPACK's integer kernels yield codes, and the logits are floats.
    head = 10 * 32 if backend.name in ("executorch", "litert") else 0
    assert left == (head if scheme.arithmetic == "integer" else macs)
    assert all(kernel.name and kernel.op for kernel in kernels)


@each
def test_a_bundle_does_the_same_without_this_project(
    backend_name: str,
    precision_name: str,
    lowered: Lowered,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = BACKENDS[backend_name]
    if not backend.deploy_module:
        pytest.skip("there is nothing to deploy")
    _, artifact = lowered(backend, PRECISIONS[precision_name])
    engine = importlib.import_module(backend.deploy_module)
    for name in backend.deploy_with:  # in a bundle they lie beside it
        monkeypatch.setitem(sys.modules, name.rpartition(".")[2], importlib.import_module(name))
    logits_NK = engine.load(artifact, {"threads": 1, "backend": settings(backend)})(images)
    np.testing.assert_allclose(logits_NK, backend.load(artifact, threads=1)(images), rtol=1e-3, atol=1e-4)
    for name in (backend.deploy_module, *backend.deploy_with):
        assert "bitsweep" not in Path(importlib.import_module(name).__file__ or "").read_text()


@pytest.mark.parametrize(
    ("backend_name", "module"),
    [
        ("onnxruntime", "onnxruntime"),
        ("openvino", "openvino"),
        ("executorch", "executorch.extension.pybindings.portable_lib"),
        ("litert", "ai_edge_litert.interpreter"),
    ],
)
def test_a_missing_package_is_named(
    backend_name: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    backend = BACKENDS[backend_name]
    with pytest.raises(MissingPackage) as caught:
        backend.load(tmp_path, threads=1)
    assert str(caught.value) == str(MissingPackage(backend.package, backend.extra))


@pytest.mark.parametrize("backend_name", [name for name, precision in RUNNABLE if precision == "int8"])
def test_the_largest_sums_fit(backend_name: str, lowered: Lowered) -> None:
    backend = BACKENDS[backend_name]
    lowered(backend, PRECISIONS["int8"])
    assert not saturates(backend, backend.scheme(PRECISIONS["int8"], current_cpu()))


@each_backend
def test_products_of_transposed_convolutions_are_counted(
    backend: Backend, fp32: Precision, transposed: tuple[ExportedProgram, int], tmp_path: Path
) -> None:
    skip_unless_lowered(backend, fp32)
    program, macs = transposed
    backend.lower(program, tmp_path)
    kernels = backend.profile(tmp_path, np.zeros((2, 3, 5, 5), np.float32), threads=1)
    # LiteRT computes the grouped one as a convolution of its input with an edge of zeros.
    of_edges = (12 * 12 - 11 * 11) * 6 * (2 * 2 * 2) if backend.name == "litert" else 0
    assert sum(kernel.macs for kernel in kernels) == 2 * (macs + of_edges)


@each_backend
def test_images_of_another_size_are_refused(
    backend: Backend, fp32: Precision, lowered: Lowered, images: np.ndarray
) -> None:
    _, artifact = lowered(backend, fp32)
    infer = backend.load(artifact, threads=1)
    for wrong in (images[..., :16], images[:, :1], images[0], images.astype(np.float64)):
        with pytest.raises(DataError, match=str(list(wrong.shape)).replace("[", r"\[")):
            infer(wrong)


@each_backend
def test_a_broken_artifact_is_named(backend: Backend, fp32: Precision, lowered: Lowered, tmp_path: Path) -> None:
    _, artifact = lowered(backend, fp32)
    shutil.copytree(artifact, tmp_path, dirs_exist_ok=True)
    file = max(tmp_path.iterdir(), key=lambda each: each.stat().st_size)
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b""):
        file.write_bytes(broken)
        with pytest.raises(StoreError, match=file.name) as caught:
            backend.load(tmp_path, threads=1)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(BitsweepError, match=file.name):
        backend.load(tmp_path, threads=1)


FRESH = """
import json, sys, time
from pathlib import Path
import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

def wanted():
    # Nanoseconds that each thread ran or waited for a core: on a busy machine a thread may get a small share only.
    return {task.name: sum(map(int, (task / "schedstat").read_text().split()[:2]))
            for task in Path("/proc/self/task").iterdir()}

conf, artifact, folder = sys.argv[1:]
backend = instantiate(OmegaConf.load(conf))
images = np.load(Path(folder) / "images.npy")
many = np.repeat(images, 200, axis=0)
seen = {"logits": [], "busy": []}
for threads in (1, 2):
    infer = backend.load(Path(artifact), threads=threads)
    seen["logits"].append(infer(images).tolist())
    infer(many)
    before, end = wanted(), time.perf_counter() + 0.7
    while time.perf_counter() < end:
        infer(many)
    spent = [nanoseconds - before.get(task, 0) for task, nanoseconds in wanted().items()]
    seen["busy"].append(sum(each > max(spent) / 5 for each in spent))
print(json.dumps(seen | {"torch": "torch" in sys.modules}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend_name", LOADERS)
def test_a_fresh_process_computes_the_same_on_the_threads_asked_for(
    backend_name: str, lowered: Lowered, fp32: Precision, images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    program, artifact = lowered(BACKENDS[backend_name], fp32)
    finished = subprocess.run(
        [sys.executable, "-c", FRESH, CONF / "backend" / f"{backend_name}.yaml", artifact, tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(finished.stdout)
    for logits in seen["logits"]:
        np.testing.assert_allclose(logits, logits_of(program, [images]), rtol=1e-3, atol=1e-4)
    assert seen["busy"] == ([1, 1] if backend_name in ON_A_GPU else [1, 2])
    assert seen["torch"] == (BACKENDS[backend_name].package in ("torch", "executorch", "torch-tensorrt"))


@each_backend
def test_what_cannot_run_has_a_cure(backend: Backend) -> None:
    for precision in PRECISIONS.values():
        reason = backend.unsupported(precision)
        assert reason is None or "use backend=" in reason
        assert reason is None or precision.name != "fp32" or "C++ compiler" in reason or "NVIDIA GPU" in reason


@pytest.mark.parametrize("backend", [BACKENDS[name] for name in BACKENDS if name not in ON_A_GPU])
def test_half_precision_without_such_arithmetic_is_storage_only(backend: Backend) -> None:
    plain = current_cpu().__class__(model="plain", architecture="x86_64", flags=frozenset({"avx2"}))
    for name in ("fp16", "bf16"):
        scheme = backend.scheme(PRECISIONS[name], plain)
        assert (scheme.weights, scheme.activations) == (PRECISIONS[name].weights, "float32")
        assert scheme.arithmetic == "float32"
        assert "avx2" in scheme.why
