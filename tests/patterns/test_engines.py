"""Every family of patterns through every engine: equal to the network in fp32, and to the reference in int8."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.export import ExportedProgram

from bitsweep import stats
from bitsweep.config.backend import Backend
from bitsweep.config.precision import FLOAT32, Precision, Scheme
from bitsweep.graphs.program import logits_of
from bitsweep.graphs.tracing import Exported
from bitsweep.methods.none import NoCompression
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.runtime.environment import current_cpu
from tests.backends.conftest import skip_unless_lowered
from tests.patterns.networks import CLASSES, FAMILIES, SIZE, built
from tests.quantization.networks import noise_splits

CONF = Path(__file__).parents[2] / "conf"
#: Engines by precision; PyTorch's integer engines are one in fp32. Machine code takes long to make, see `CASES`.
ENGINES = {
    "fp32": ("reference", "onnxruntime", "openvino", "fbgemm"),
    "int8": ("reference", "onnxruntime", "openvino", "fbgemm", "onednn", "qnnpack"),
}
#: What every run checks; the others are slow together.
QUICK = {("reference", "fp32")}
#: Least signal-to-noise ratio of the logits of each pattern.
PARITY_DB = {"fp32": 100, "int8": 30}
CASES = [
    pytest.param(family, engine, precision, marks=() if (engine, precision) in QUICK else pytest.mark.slow)
    for family in FAMILIES
    for precision, engines in ENGINES.items()
    for engine in engines
] + [pytest.param("overwritten", "inductor", "int8", marks=(pytest.mark.slow, pytest.mark.timeout(1800)))]


def _choice(group: str, name: str) -> object:
    return instantiate(OmegaConf.load(CONF / group / f"{name}.yaml"), _convert_="all")


@cache
def _network(family: str) -> torch.nn.Module:
    return built(FAMILIES[family])


@cache
def _exported(family: str) -> Exported:
    """Traced once, as a sweep does it."""
    compress = NoCompression(name="none").compress
    made = compress(_network(family), noise_splits(SIZE), input_shape=(3, SIZE, SIZE), scheme=FLOAT32, seed=0)
    return Exported(made.program, normalized=made.normalized)


@cache
def _program(family: str, scheme: Scheme) -> ExportedProgram:
    if scheme.weights == "float32":
        return _exported(family).program
    compress = PostTrainingQuantization(name="ptq", calibration_images=32).compress
    return compress(_exported(family), noise_splits(SIZE), input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0).program


@pytest.mark.parametrize(("family", "engine", "precision"), CASES)
def test_patterns_hold(family: str, engine: str, precision: str, tmp_path: Path) -> None:
    backend, choice = _choice("backend", engine), _choice("precision", precision)
    assert isinstance(backend, Backend) and isinstance(choice, Precision)
    skip_unless_lowered(backend, choice)
    # The reference runs what another engine is given.
    giver = _choice("backend", "onnxruntime") if engine == "reference" else backend
    assert isinstance(giver, Backend)
    program = _program(family, giver.scheme(choice, current_cpu()))
    images = np.random.default_rng(1).standard_normal((5, 3, SIZE, SIZE)).astype(np.float32)
    expected = logits_of(program, [images])
    if engine == "reference" and precision == "fp32":
        with torch.no_grad():
            expected = _network(family)(torch.from_numpy(images)).numpy()
    backend.lower(program, tmp_path)
    run = backend.load(tmp_path, threads=1)
    for logits, meant in ((run(images), expected), (run(images[:1]), expected[:1])):
        found = {
            name: stats.sqnr_db(meant[:, first : first + CLASSES], logits[:, first : first + CLASSES])
            for first, name in zip(range(0, logits.shape[1], CLASSES), FAMILIES[family], strict=True)
        }
        assert not {name: db for name, db in found.items() if db < PARITY_DB[precision]}
