"""An ONNX file as a model of MLflow. MLflow loads it and runs it once, so this is done in a process of its own."""

from pathlib import Path

from bitsweep.runtime import environment
from bitsweep.runtime.progress import Progress
from bitsweep.tracking.address import Address
from bitsweep.tracking.connection import client_of, explained

#: Name of the model of a cell in MLflow, and of the folder of its files where it is none of MLflow's kinds.
MODEL = "model"


def log_onnx_model(
    *,
    address: Address,
    experiment_id: str,
    run_id: str,
    file: Path,
    examples: Path,
    classes: int,
    folder: Path,
    progress: Progress,
) -> None:
    """Log a file as the model of a run, with what it takes and gives.

    Args:
        address: of the tracking store.
        experiment_id, run_id: of the run there.
        examples: ``.npy`` file of float32 images [N, C, H, W]; the first becomes MLflow's example.
        classes: number of logits.

    Raises:
        TrackingError: the tracking store cannot be used.
    """
    import mlflow
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.load(examples)[:1]
    with explained(address):
        client_of(address)
        mlflow.set_experiment(experiment_id=experiment_id)
        Model.log(
            artifact_path=None,
            name=MODEL,
            flavor=mlflow.onnx,
            run_id=run_id,
            onnx_model=onnx.load(file),
            signature=ModelSignature(
                Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]), "images")]),
                Schema([TensorSpec(np.dtype("float32"), (-1, classes), "logits")]),
            ),
            input_example=example,
            onnx_execution_providers=["CPUExecutionProvider"],
            pip_requirements=[f"onnxruntime=={environment.version_of('onnxruntime')}"],
            save_as_external_data=False,
        )
