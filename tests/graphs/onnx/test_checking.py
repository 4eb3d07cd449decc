from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from torch import nn

from bitsweep.graphs.onnx.checking import require_same


def test_a_file_that_onnx_runtime_does_not_run_is_said_to_be_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("images", "same")]
    node = helper.make_node("Sharpen", ["images"], ["same"], domain="somebody.else")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("somebody.else", 1)]
    model = helper.make_model(helper.make_graph([node], "net", values[:1], values[1:]), opset_imports=opsets)
    onnx.save(model, tmp_path / "net.onnx")
    require_same(nn.Identity(), tmp_path / "net.onnx", shape=(1, 1, 4, 4), images=(1, 4, 4))
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'net.onnx'}: ONNX Runtime does not run it (")
    assert said.endswith("so that the network was not compared with it\n")
    assert said.count("\n") == 1
