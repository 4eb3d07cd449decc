"""The README's example of a method is a method."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from bitsweep.config.precision import Grid, Scheme
from bitsweep.data.splits import make_splits
from bitsweep.datasets.digits import Digits

README = (Path(__file__).parents[1] / "README.md").read_text()


def _block(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return str(block)


def test_the_example_compresses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("bitsweep.methods.power_of_two")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(_block("python"), module.__dict__)
    knobs = yaml.safe_load(_block("yaml"))
    assert knobs.pop("_target_") == f"{module.__name__}.PowerOfTwo"
    assert knobs.pop("defaults") == ["ptq"]
    method = module.PowerOfTwo(**knobs)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    )
    scheme = Scheme(
        weights=Grid(bits=8, signed=True, symmetric=True, per_channel=True),
        activations=Grid(bits=8, signed=False, symmetric=False),
        arithmetic="integer",
    )
    splits = make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0)
    result = method.compress(network.eval(), splits, input_shape=(3, 8, 8), scheme=scheme, seed=0)
    scales = [value for name, value in result.program.state_dict.items() if name.endswith("weight_scale")]
    scales += [value for name, value in result.program.constants.items() if name.endswith("weight_scale")]
    assert len(scales) == 2
    assert all(torch.equal(scale.log2(), scale.log2().round()) for scale in scales)
    assert all(layer.sqnr_db is not None and layer.sqnr_db > 25 for layer in result.layers)
