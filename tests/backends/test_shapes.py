"""Images of any number of channels, height and width, on every engine: equal to the network, and to the reference."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.export import ExportedProgram

from bitsweep import stats
from bitsweep.config.precision import Scheme
from bitsweep.graphs.program import logits_of
from bitsweep.methods.none import NoCompression
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.results import Shape, Split, Splits
from bitsweep.runtime.environment import current_cpu
from tests.backends.conftest import skip_unless_lowered

CONF = Path(__file__).parents[2] / "conf"
SHAPES: tuple[Shape, ...] = ((1, 20, 12), (4, 12, 20), (16, 13, 9))
ENGINES = {
    "fp32": ("reference", "onnxruntime", "openvino", "torch", "fbgemm", "inductor"),
    "int8": ("reference", "onnxruntime", "openvino", "fbgemm", "onednn", "qnnpack", "inductor"),
}
QUICK = {("reference", "fp32"), ("onnxruntime", "int8")}
CASES = [
    pytest.param(engine, precision, shape, marks=() if (engine, precision) in QUICK else pytest.mark.slow)
    for precision, engines in ENGINES.items()
    for engine in engines
    # Machine code takes long to make: one channel has a kernel of its own.
    for shape in (SHAPES[:1] if engine == "inductor" else SHAPES)
]


@cache
def network(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)), nn.Conv2d(8, 8, (3, 5), groups=8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


@cache
def program(shape: Shape, scheme: Scheme) -> ExportedProgram:
    channels, *size = shape
    pixels = np.random.default_rng(0).integers(0, 65_536, (64, *size, channels), dtype=np.uint16)
    split = Split(images=pixels, labels=np.arange(64) % 4)
    splits = Splits(
        train=split, val=split, test=split, classes=tuple("abcd"), mean_C=(0.5,), std_C=(0.3,), fingerprint=""
    )
    method = PostTrainingQuantization(name="ptq", calibration_images=32)
    compress = (NoCompression(name="none") if scheme.weights == "float32" else method).compress
    return compress(network(channels), splits, input_shape=shape, scheme=scheme, seed=0).program


@pytest.mark.parametrize(("engine", "precision", "shape"), CASES)
def test_an_engine_takes_images_of_any_shape(engine: str, precision: str, shape: Shape, tmp_path: Path) -> None:
    backend, choice = (
        instantiate(OmegaConf.load(CONF / group / f"{name}.yaml"), _convert_="all")
        for group, name in (("backend", engine), ("precision", precision))
    )
    skip_unless_lowered(backend, choice)
    lowered = program(shape, backend.scheme(choice, current_cpu()))
    images = ((np.random.default_rng(1).random((5, *shape)) - 0.5) / 0.3).astype(np.float32)
    with torch.no_grad():
        plain = network(shape[0])(torch.from_numpy(images)).numpy()
    expected = plain if precision == "fp32" else logits_of(lowered, [images])
    assert stats.sqnr_db(plain, expected) > 20
    backend.lower(lowered, tmp_path)
    run = backend.load(tmp_path, threads=1)
    least = 100 if precision == "fp32" else 30
    assert stats.sqnr_db(expected, run(images)) > least
    assert stats.sqnr_db(expected[:1], run(images[:1])) > least
