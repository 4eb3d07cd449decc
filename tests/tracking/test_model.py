"""An ONNX file as a model of MLflow, without what MLflow would do for it in vain."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

LOG = """
from pathlib import Path
import importlib_metadata
import mlflow
from bitsweep.runtime.progress import silent
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.model import log_onnx_model

listed = []
importlib_metadata.packages_distributions = lambda: listed.append(1) or {}
connection = Connection()
run = connection.client.create_run(connection.experiment_id)
log_onnx_model(
    address=connection.address, experiment_id=connection.experiment_id, run_id=run.info.run_id, folder=Path(),
    file=Path("model.onnx"), examples=Path("examples.npy"), classes=4, progress=silent,
)
print("listings of packages:", len(listed))
print(mlflow.pyfunc.get_model_dependencies(f"runs:/{run.info.run_id}/model", format="pip"))
"""


@pytest.mark.slow
def test_no_files_of_packages_are_listed(workplace: Path) -> None:
    """It takes a second of every cell."""
    shapes = ("images", ["N", 4]), ("logits", ["N", 4])
    images, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["logits"])], "same", [images], [logits])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), "model.onnx")
    np.save("examples.npy", np.zeros((2, 4), np.float32))
    said = subprocess.run([sys.executable, "-c", LOG], capture_output=True, text=True, check=True).stdout
    assert "listings of packages: 0\n" in said
    assert "onnxruntime==" in Path(said.splitlines()[-1]).read_text()
