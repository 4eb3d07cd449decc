import copy
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from bitsweep.graphs.ops import quantized
from bitsweep.lowering.onnx.export import OPSET, export_onnx
from bitsweep.lowering.onnx.operators import translations
from bitsweep.lowering.onnx.translation import translate


class Plain(nn.Module):
    """Layers between pairs, whose operands all have the type that they compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        codes = quantized.quantize_per_tensor(images, 0.1, 3, 0, 255, torch.uint8)
        images = quantized.dequantize_per_tensor(codes, 0.1, 3, 0, 255, torch.uint8)
        found = functional.hardswish(self.conv(images)) + self.conv(images).relu()
        return self.linear(functional.hardtanh(found, 0.0, 6.0).mean((2, 3)))


class Mixed(Plain):
    """Operands that are cast: numbers of another type, integers, and answers."""

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images * 2 + 1) / 3
        counts = (found > 0).sum((2, 3))
        return self.linear(found.mean((2, 3)) * counts + torch.arange(4)).to(torch.float16).to(torch.float32) ** 2


class Undivided(ExportedProgram):
    """A program whose operations PyTorch does not take apart."""

    def run_decompositions(self, *table, **options) -> ExportedProgram:
        return self


def _program(network: nn.Module) -> ExportedProgram:
    torch.manual_seed(0)
    images, dynamic = torch.randn(2, 3, 8, 8), ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad():
        return torch.export.export(network.eval(), (images,), dynamic_shapes=dynamic)


@pytest.mark.parametrize("network", [Plain, Mixed])
def test_it_is_what_torch_onnx_export_writes(network: type[nn.Module]) -> None:
    program, own = _program(network()), translations(codes_of_gates=False)
    before = [(node.name, node.target, str(node.args)) for node in program.graph.nodes]
    found = translate(program, own, opset=OPSET)
    assert [(node.name, node.target, str(node.args)) for node in program.graph.nodes] == before
    undivided = copy.copy(program)
    undivided.__class__ = Undivided
    expected = torch.onnx.export(
        undivided, dynamo=True, opset_version=OPSET, custom_translation_table=own, optimize=False, verbose=False
    )
    assert expected is not None
    for model in (found, expected.model):
        model.metadata_props.clear()
    # Byte for byte, but for where each node comes from.
    texts = [ir.serde.serialize_model(model) for model in (found, expected.model)]
    assert texts[0].graph.SerializeToString(deterministic=True) == texts[1].graph.SerializeToString(deterministic=True)
    assert texts[0].opset_import == texts[1].opset_import


def test_without_the_parts_of_pytorch_that_it_uses_pytorch_writes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, images = _program(Plain()), np.random.default_rng(0).standard_normal((3, 3, 8, 8), dtype=np.float32)
    found = []
    for name in ("with", "without"):
        export_onnx(program, tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"images": images})[0])
        monkeypatch.setitem(sys.modules, "bitsweep.lowering.onnx.translation", None)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
