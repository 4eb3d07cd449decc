import numpy as np
import pytest
import torch

from bitsweep.config.precision import FLOAT32, Precision
from bitsweep.graphs.program import logits_of
from bitsweep.methods.none import NoCompression
from bitsweep.results import Split, Splits


@torch.no_grad()
def test_the_program_is_the_network() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    network(torch.randn(8, 3, 8, 8))
    images = torch.randn(5, 3, 8, 8)
    expected = network.eval()(images).numpy()
    empty = Split(images=np.zeros((0, 8, 8, 3), np.uint8), labels=np.zeros(0, np.int64))
    splits = Splits(train=empty, val=empty, test=empty, classes=("a", "b"), mean_C=(0,), std_C=(1,), fingerprint="")
    result = NoCompression(name="none").compress(network, splits, input_shape=(3, 8, 8), scheme=FLOAT32, seed=0)
    np.testing.assert_allclose(logits_of(result.program, [images.numpy()]), expected, rtol=1e-4, atol=1e-5)
    assert [(layer.name, layer.weights, layer.stored_bits) for layer in result.layers] == [
        ("0", "float32", 32 * (108 + 4)),
        ("4", "float32", 32 * (288 + 2)),
    ]
    assert all(layer.sqnr_db is None and not layer.reason for layer in result.layers)


@pytest.mark.parametrize("weights", ["float16", "bfloat16"])
def test_anything_but_fp32_needs_a_method(weights: str) -> None:
    precision = Precision(name="half", weights=weights, activations=weights)
    reason = NoCompression(name="none").unsupported(precision)
    assert reason == "method=none leaves the network in fp32, not half: choose precision=fp32 or method=ptq"
