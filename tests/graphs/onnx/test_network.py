"""Networks from ONNX files give what ONNX Runtime gives."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from bitsweep import hydra_app
from bitsweep.errors import ConfigError
from bitsweep.graphs import ops, tracing
from bitsweep.graphs.onnx.checking import require_same
from bitsweep.graphs.onnx.network import OnnxNetwork, network_of, with_pairs
from bitsweep.graphs.onnx.operators.table import OPERATORS
from bitsweep.graphs.onnx.reading import NOT_COMPUTED, OnnxGraph, OnnxNode, check_onnx
from bitsweep.graphs.onnx.values import as_constant, as_tensor
from bitsweep.lowering.onnx.export import export_onnx
from tests.graphs.onnx.networks import SIZE, Classifier, by_onnxruntime, difference, export

#: Largest difference to ONNX Runtime, relative to the largest logit.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one network for any number of images, and for one at a time."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    network = Classifier()
    export(network, folder / "any.onnx")
    export(network, folder / "one.onnx", batch=1)
    return folder


@pytest.mark.parametrize("file", ["any.onnx", "one.onnx"])
def test_a_network_is_what_its_file_is(file: str, files: Path) -> None:
    assert difference(files / file) < TOLERANCE


@pytest.mark.parametrize(("file", "number"), [("any.onnx", None), ("one.onnx", 1)])
def test_a_network_that_is_another_one_is_refused(file: str, number: int | None, files: Path) -> None:
    """Whatever an operation was misunderstood by: it would be measured wrong without a word."""
    network, images = network_of(files / file), (3, SIZE, SIZE)
    require_same(network, files / file, shape=(number, *images), images=images)
    with torch.no_grad():
        network.get_parameter("stem.0.weight").mul_(1.05)
    with pytest.raises(ConfigError, match="nothing here computes what ONNX Runtime does of it"):
        require_same(network, files / file, shape=(number, *images), images=images)


def test_layers_and_functions_are_those_of_the_network(files: Path) -> None:
    graph = tracing.trace(network_of(files / "any.onnx"), input_shape=(3, SIZE, SIZE))
    names = [layer.name for layer in ops.layers(graph)]
    assert names == ["stem.0", "block.0", "block.2", "skip", "head.0", "head.2"]
    called = {node.target for node in graph.graph.nodes}
    assert {ops.aten.hardswish.default, ops.aten.silu.default, ops.aten.linear.default} <= called


def test_its_weights_are_parameters(files: Path) -> None:
    network = network_of(files / "any.onnx")
    assert {"stem.0.weight", "head.2.weight", "head.2.bias"} <= dict(network.named_parameters()).keys()


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """A few images for ``quantize_static``."""

    def __init__(self) -> None:
        pixels = np.random.default_rng(1).standard_normal((8, 1, 3, SIZE, SIZE), dtype=np.float32)
        self._images: Iterator[dict[str, np.ndarray]] = iter([{"pixels": each} for each in pixels])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._images, None)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("form", "options"),
    [(QuantFormat.QDQ, {}), (QuantFormat.QDQ, {"AddQDQPairToWeight": True}), (QuantFormat.QOperator, {})],
    ids=["pairs", "pairs behind float weights", "operators"],
)
def test_a_quantized_file_has_the_same_codes(
    form: QuantFormat,
    options: dict[str, bool],
    per_channel: bool,
    files: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    quantize_static(
        files / "any.onnx", tmp_path / "q.onnx", Calibration(), quant_format=form, per_channel=per_channel,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        extra_options={"WeightSymmetric": True, **options},
    )  # fmt: skip
    pixels = np.random.default_rng(0).standard_normal((64, 3, SIZE, SIZE), dtype=np.float32)
    with torch.no_grad():
        given = network_of(tmp_path / "q.onnx").eval()(torch.from_numpy(pixels)).numpy()
    meant = by_onnxruntime(tmp_path / "q.onnx", pixels)
    # Weights of 8 bits saturate on CPUs without VNNI, so that this says which file was read, and not which codes.
    assert np.linalg.norm(given - meant) < 0.3 * np.linalg.norm(meant)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_codes_of_channels_may_lie_far_from_their_zero_points(kind: type) -> None:
    """Their differences are no codes, as with what NNCF quantizes by channel before a depthwise convolution."""
    limits = np.iinfo(kind)
    zeros, scales = np.array([limits.min, 0, limits.max], kind), np.array([0.5, 0.25, 2], np.float32)
    codes = np.tile(np.array([limits.min, 1, limits.max], kind), (2, 3, 1))
    node = OnnxNode(op="DequantizeLinear", inputs=("x", "s", "z"), outputs=("y",), attributes={"axis": 1})
    given = OPERATORS[node.op].call(node, *map(torch.from_numpy, (codes, scales, zeros)))
    meant = (codes.astype(np.float32) - zeros.astype(np.float32)[:, None]) * scales[:, None]
    np.testing.assert_array_equal(given, meant)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            OnnxNode(op="Nonsense", inputs=("x",), outputs=("y",)),
            "nothing here computes Nonsense; export it with other",
        ),
        (OnnxNode(op="LRN", inputs=("x",), outputs=("y",), attributes={"size": 4}), r"LRN: size=4 is even"),
    ],
)
def test_what_nothing_computes_is_one_line(node: OnnxNode, message: str, tmp_path: Path) -> None:
    made = helper.make_node(node.op, node.inputs, node.outputs, **node.attributes)
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, 4, 4])
    graph = helper.make_graph([made], "g", [images], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=message):
        network_of(tmp_path / "net.onnx")(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("op", ["TopK", "OneHot", "NonZero", "LSTM"])
def test_planning_sees_what_nothing_computes(op: str, tmp_path: Path) -> None:
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, 4, 4])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    onnx.save(
        helper.make_model(helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [images], [output])),
        tmp_path / "net.onnx",
    )
    with pytest.raises(ConfigError, match=f"nothing here computes {op}; export it with other operators"):
        check_onnx(tmp_path / "net.onnx")


def test_planning_refuses_nothing_that_is_computed() -> None:
    assert NOT_COMPUTED.isdisjoint(OPERATORS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([np.nan, 1, np.nan], np.float32), r"w holds NaN \(2 of 3 values\): take another file"),
        (np.array([np.nan, 1, 2], np.float16), r"w holds NaN \(1 of 3 values\)"),
        (np.array([np.nan, 1, 2], np.float64), r"w holds NaN \(1 of 3 values\)"),
        (np.array([1 + 2j, 1, 2], np.complex64), r"w holds COMPLEX64, which nothing here computes with"),
        (np.array(["a", "b", "c"], object), r"w holds STRING, which nothing here computes with"),
        (np.array([-np.inf, 0, np.inf], np.float32), ""),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_constants_without_a_value_are_refused(values: np.ndarray, message: str, inside: bool, tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(values.reshape(1, 3, 1, 1), "w")
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, 4, 4])
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor)] if inside else []
    graph = helper.make_graph(
        [*nodes, helper.make_node("Max", ["x", "w"], ["y"])],
        "g", [images], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [] if inside else [tensor],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    if message:
        for read in (check_onnx, network_of):
            with pytest.raises(ConfigError, match=message):
                read(tmp_path / "net.onnx")
    else:  # a limit, or a mask
        assert torch.isposinf(network_of(tmp_path / "net.onnx")(torch.zeros(1, 3, 4, 4))[:, 2]).all()


def test_nodes_may_come_in_any_order(files: Path, tmp_path: Path) -> None:
    model = onnx.load(files / "any.onnx")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, tmp_path / "reversed.onnx")
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        given, meant = (network_of(file).eval()(images) for file in (tmp_path / "reversed.onnx", files / "any.onnx"))
    assert torch.equal(given, meant)
    model.graph.node.remove(next(node for node in nodes if node.op_type == "Conv"))
    onnx.save(model, tmp_path / "torn.onnx")
    with pytest.raises(ConfigError, match=r" reads .*, which nothing makes; export it again$"):
        network_of(tmp_path / "torn.onnx")


@pytest.mark.parametrize(("content", "message"), [(b"nothing", "cannot be read as ONNX"), (b"", "cannot be read")])
def test_what_is_no_file_of_onnx_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        network_of(tmp_path / "net.onnx")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of making the cases
@pytest.mark.slow
def test_operations_compute_what_onnx_says() -> None:
    """All the cases of ONNX's own tests whose operations are known; a few of them ask for what nothing here does."""
    refused, checked = Counter[str](), Counter[str]()
    for case in collect_testcases():
        inputs, outputs = case.data_sets[0] if case.model is not None and case.data_sets else ((), ())
        graph = _graph_of(case.model, inputs)
        if graph is None or {node.op for node in graph.nodes} - OPERATORS.keys():
            continue
        try:
            given = OnnxNetwork(graph).eval()(as_tensor(np.asarray(inputs[0], np.float32)))
        except ConfigError as error:
            refused[str(error).split(":")[0]] += 1
            continue
        value = given.detach().numpy() if isinstance(given, torch.Tensor) else as_constant(given)
        np.testing.assert_allclose(value, np.asarray(outputs[0], value.dtype), rtol=1e-3, atol=1e-5, err_msg=case.name)
        checked.update({node.op for node in graph.nodes})
    assert len(checked) >= 120, sorted(OPERATORS.keys() - checked.keys())
    assert refused.keys() <= checked.keys(), refused.keys() - checked.keys()
    assert sum(refused.values()) < 0.1 * sum(checked.values()), refused


def _graph_of(model: onnx.ModelProto | None, inputs: tuple[object, ...]) -> OnnxGraph | None:
    """A case as a graph of its first output by its first input, which is to be float, the others being constants."""
    if model is None or not inputs or not all(isinstance(each, np.ndarray | np.generic) for each in inputs):
        return None
    if inputs[0].dtype not in (np.float32, np.float64):  # type: ignore[attr-defined]
        return None
    names = [each.name for each in model.graph.input]
    opset = max(each.version for each in model.opset_import)
    nodes = [
        OnnxNode(
            op=node.op_type, inputs=tuple(node.input), outputs=tuple(node.output), opset=opset,
            attributes={each.name: _plain(helper.get_attribute_value(each)) for each in node.attribute},
        )
        for node in model.graph.node
    ]  # fmt: skip
    constants = dict(zip(names[1:], map(np.asarray, inputs[1:]), strict=True))
    graph = OnnxGraph(
        nodes=tuple(nodes), constants=constants, images=names[0], shape=(None,),
        outputs=(model.graph.output[0].name,),
    )  # fmt: skip
    return with_pairs(graph)


def _plain(value: object) -> object:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["lenet", "mlp", "cnn", "convnet", "resnet20", "mobilenetv3", "timm"])
def test_a_network_of_the_package_comes_back(choice: str, tmp_path: Path) -> None:
    """As our own exporter writes it."""
    model = _model(choice)
    network = _lively(model.build(10))
    export_onnx(tracing.export(network, input_shape=model.input_shape), tmp_path / "net.onnx")
    assert difference(tmp_path / "net.onnx", model.input_shape, images=2) < TOLERANCE


@pytest.mark.slow
def test_a_transformer_comes_back(tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer

    network = _lively(VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=7))
    for batch in (None, 1):
        export(network, tmp_path / "vit.onnx", batch=batch, shape=(3, 32, 32))
        assert difference(tmp_path / "vit.onnx", (3, 32, 32)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1"])
def test_graphs_that_come_with_onnx(name: str, tmp_path: Path) -> None:
    """Their weights, which are all the same, are drawn anew."""
    model = onnx.load(Path(onnx.__file__).parent / f"backend/test/data/light/light_{name}.onnx")
    generator, drawn = np.random.default_rng(0), []
    constants = {each.name: each for each in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "ConstantOfShape" and len(shape := numpy_helper.to_array(constants[node.input[0]])) > 1:
            scale = np.sqrt(2 / np.prod(shape[1:]))
            weight = (generator.standard_normal(shape) * scale).astype(np.float32)
            drawn.append(numpy_helper.from_array(weight, node.output[0]))
            model.graph.node.remove(node)
    model.graph.initializer.extend(drawn)
    if model.graph.node[-1].op_type == "Softmax":
        model.graph.output[0].name = model.graph.node[-1].input[0]
        model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "net.onnx")
    assert difference(tmp_path / "net.onnx", (3, 224, 224), images=1) < TOLERANCE


def _model(choice: str):  # type: ignore[no-untyped-def]
    """A model as its YAML has it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from bitsweep.config.binding import construct
    from bitsweep.config.model import Model

    with initialize_config_dir(str(hydra_app.CONF.resolve()), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", [f"model={choice}"]).model)
    return construct("model", config, Model)  # type: ignore[arg-type]


def _lively(network: nn.Module) -> nn.Module:
    """The network with statistics and heads as training leaves them, none of them 0 or 1."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return network.eval()
