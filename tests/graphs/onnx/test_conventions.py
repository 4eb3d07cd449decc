"""Files with channels last, and with probabilities, as converters from TensorFlow write them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bitsweep.graphs.onnx.checking import require_same
from bitsweep.graphs.onnx.network import network_of
from bitsweep.lowering.onnx.export import INPUT
from bitsweep.lowering.onnx.given import write_given
from bitsweep.models.onnx import OnnxModel
from bitsweep.training.network import build_network
from tests.graphs.onnx.networks import SIZE, Classifier, by_onnxruntime, export

CLASSES = 10


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("plain") / "net.onnx"
    export(Classifier(CLASSES), path)
    return path


def converted(plain: Path, path: Path, *, sizes: tuple[Any, ...] = ("N", SIZE, SIZE, 3), **softmax: int) -> Path:
    """Another file with the same network, from images with channels last to probabilities."""
    model = onnx.load(plain)
    graph = model.graph
    (images,), (scores,) = graph.input, graph.output
    graph.node.insert(0, helper.make_node("Transpose", ["x:0"], [images.name], perm=[0, 3, 1, 2]))
    graph.node.append(helper.make_node("Softmax", [scores.name], ["normalized"], **softmax))
    graph.node.append(helper.make_node("Identity", ["normalized"], ["probabilities"]))
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info("x:0", TensorProto.FLOAT, sizes))
    graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("N", CLASSES)))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("sizes", [("N", SIZE, SIZE, 3), (1, SIZE, SIZE, 3), ("N", "H", "W", 3)])
def test_a_network_takes_channels_first_and_yields_logits(sizes: tuple[Any, ...], plain: Path, tmp_path: Path) -> None:
    file = converted(plain, tmp_path / "net.onnx", sizes=sizes, axis=-1)
    model = OnnxModel(name="onnx", file=str(file), image_size=None if SIZE in sizes else SIZE)
    assert model.input_shape == (3, SIZE, SIZE)
    network, _ = build_network(model, CLASSES)
    images = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        given = network.eval()(images)
    np.testing.assert_allclose(given, by_onnxruntime(plain, images.numpy()), atol=1e-5)


def test_it_is_compared_with_what_its_file_computes(plain: Path, tmp_path: Path) -> None:
    file = converted(plain, tmp_path / "net.onnx")
    network = network_of(file).eval()
    require_same(network, file, shape=(None, 3, SIZE, SIZE), images=(3, SIZE, SIZE))
    with torch.no_grad():
        network.get_parameter("stem.0.weight").mul_(1.5)
    with pytest.raises(Exception, match="nothing here computes what ONNX Runtime does of it"):
        require_same(network, file, shape=(None, 3, SIZE, SIZE), images=(3, SIZE, SIZE))


def test_engines_get_the_file_as_the_network_is(plain: Path, tmp_path: Path) -> None:
    write_given(converted(plain, tmp_path / "net.onnx"), tmp_path / "given.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE), dtype=np.float32)
    np.testing.assert_allclose(
        by_onnxruntime(tmp_path / "given.onnx", images), by_onnxruntime(plain, images), atol=1e-5
    )
    assert onnx.load(tmp_path / "given.onnx").graph.input[0].name == INPUT


@pytest.mark.parametrize("change", ["axis", "read"])
def test_another_softmax_stays(change: str, plain: Path, tmp_path: Path) -> None:
    """One over the images, and one whose probabilities something else reads."""
    file = converted(plain, tmp_path / "net.onnx", axis=0 if change == "axis" else 1)
    if change == "read":
        model = onnx.load(file)
        model.graph.node[-1].CopyFrom(helper.make_node("Mul", ["normalized", "normalized"], ["probabilities"]))
        onnx.save(model, file)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        given = network_of(file).eval()(images)
    meant = by_onnxruntime(file, images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(given, meant, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "opset", "axis"),
    [((CLASSES, 1, 1), 12, None), ((CLASSES, 1, 1), 13, 1), ((1, 1, CLASSES), 13, None), ((1, 1, CLASSES), 17, -1)],
)
def test_a_softmax_over_classes_with_further_dimensions(
    shape: tuple[int, ...], opset: int, axis: int | None, tmp_path: Path
) -> None:
    images, scores = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", *sizes))
        for name, sizes in (("images", (CLASSES, 1, 1)), ("scores", shape))
    )
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [4], (-1, *shape))
    nodes = [
        helper.make_node("Reshape", ["images", "sizes"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], **({} if axis is None else {"axis": axis})),
    ]
    graph = helper.make_graph(nodes, "net", [images], [scores], [sizes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), tmp_path / "net.onnx")
    given = torch.randn(2, CLASSES, 1, 1)
    network = network_of(tmp_path / "net.onnx")
    torch.testing.assert_close(network(given).flatten(1), given.flatten(1))
    require_same(network, tmp_path / "net.onnx", shape=(None, CLASSES, 1, 1), images=(CLASSES, 1, 1))
    write_given(tmp_path / "net.onnx", tmp_path / "given.onnx")
    np.testing.assert_allclose(by_onnxruntime(tmp_path / "given.onnx", given.numpy()), given.flatten(1))
