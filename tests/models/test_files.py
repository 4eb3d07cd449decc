"""Networks that come as files: programs of ``torch.export`` and ONNX."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from bitsweep import configured, hydra_app, stages
from bitsweep.cell import Cell
from bitsweep.config.file_model import FileModel
from bitsweep.config.precision import FLOAT32
from bitsweep.data.preprocessing import normalized
from bitsweep.errors import ConfigError, DataError
from bitsweep.graphs.lifting import program_of
from bitsweep.graphs.tracing import folded
from bitsweep.methods.as_is import AsIs
from bitsweep.models.exported import ExportedModel
from bitsweep.models.onnx import OnnxModel
from bitsweep.results import Split, Splits
from bitsweep.training.network import build_network
from tests.graphs.onnx.networks import by_onnxruntime, export

#: C, H and W: grey, and wider than high.
SHAPE = (1, 12, 20)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 9, 3)).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network for one image as a program and as ONNX, and with any sizes as a program."""
    folder = tmp_path_factory.mktemp("files")
    torch.export.save(torch.export.export(network(), (torch.zeros(1, *SHAPE),)), folder / "net.pt2")
    export(network(), folder / "net.onnx", batch=1, shape=SHAPE)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    sides = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(pooled.eval(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=(sides,))
    torch.export.save(program, folder / "open.pt2")
    return folder


def model_of(file: Path) -> FileModel:
    if file.suffix == ".pt2":
        return ExportedModel(name="exported", file=str(file))
    return OnnxModel(name="onnx", file=str(file))


@pytest.mark.parametrize("file", ["net.pt2", "net.onnx"])
def test_a_file_says_what_images_it_takes_and_gives_its_logits(file: str, files: Path) -> None:
    model = model_of(files / file)
    assert model.input_shape == SHAPE
    images = np.random.default_rng(0).standard_normal((5, *SHAPE), dtype=np.float32)
    built, head = build_network(model, 3)
    with torch.no_grad():
        given = built.eval()(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(given, network()(torch.from_numpy(images)).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(given, by_onnxruntime(files / "net.onnx", images), rtol=1e-5, atol=1e-6)
    assert head in ("3", "n3", "linear", "node_linear")


@pytest.mark.parametrize(
    ("file", "knobs", "message"),
    [
        ("net.pt2", {"image_size": 16}, r"model\.image_size=16: .*net\.pt2 takes 12; leave it out"),
        ("net.onnx", {"channels": 3}, r"model\.channels=3: .*net\.onnx takes 1; leave it out"),
        ("net.onnx", {"output": "logits"}, r"model\.output=logits: .*net\.onnx has scores: choose one of them"),
        ("open.pt2", {}, r"model\.image_size: .*open\.pt2 leaves it open; give it, as in model\.image_size=VALUE"),
    ],
)
def test_a_plan_sees_what_the_file_does_not_say(file: str, knobs: dict[str, int], message: str, files: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(model_of(files / file), **knobs).check()


@pytest.mark.parametrize(
    ("opset", "outputs", "weights", "shape", "message"),
    [
        (6, 1, "", (1, 3), "is written for opset 6; 7 to [0-9]+ can be read"),
        (99, 1, "", (1, 3), "is written for opset 99; 7 to"),
        (17, 0, "", (1, 3), "has no output"),
        (17, 1, "lost.bin", (1, 3), r"its weights are in lost\.bin, which is not beside it; put that file there, too"),
        (17, 1, "../lost.bin", (1, 3), r"its weights are in \.\./lost\.bin, which is not in its folder"),
        (17, 1, "", None, "x is FLOAT of a shape that is left open"),
        (17, 1, "", (1, 3), "x is FLOAT of 2 dimensions"),
    ],
)
def test_a_plan_sees_what_of_a_file_cannot_be_read(
    opset: int, outputs: int, weights: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    images, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    bias = helper.make_tensor("b", TensorProto.FLOAT, [3], [1, 2, 3])
    if weights:
        del bias.float_data[:]
        bias.data_location = TensorProto.EXTERNAL
        bias.external_data.add(key="location", value=weights)
    node = helper.make_node("Add", ["x", "b"], ["y"])
    graph = helper.make_graph([node], "g", [images], [logits][:outputs], [bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=rf"^model\.file=.*net\.onnx: {message}"):
        model_of(tmp_path / "net.onnx").check()


def test_what_a_file_leaves_open_is_set(files: Path) -> None:
    model = replace(model_of(files / "open.pt2"), image_size=(10, 24))
    assert model.input_shape == (3, 10, 24)
    built, _ = build_network(model, 3)
    assert built(torch.zeros(4, 3, 10, 24)).shape == (4, 3)


def test_its_channels_are_those_of_the_images(files: Path) -> None:
    model = replace(model_of(files / "open.pt2"), image_size=16, mean=(0.5,), std=(0.25,))
    part = Split(images=np.zeros((4, 16, 16, 3), np.uint8), labels=np.zeros(4, np.int64))
    splits = Splits(train=part, val=part, test=part, classes=("a",), mean_C=(0,), std_C=(1,), fingerprint="")
    assert normalized(splits, model).std_C == (0.25,)
    grey = replace(model_of(files / "net.pt2"), mean=(0.5,), std=(0.25,))
    with pytest.raises(DataError, match=r"^model\.channels=1: the images have 3 channels"):
        normalized(splits, grey)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"mean": (0.5, 0.5), "std": (1, 1)}, r"^model\.mean=\[0\.5, 0\.5\]: give one number, or one for each of 1 "),
        ({"channel_order": "bgr"}, r"^model\.channel_order=bgr: is for three channels, not 1"),
    ],
)
def test_knobs_of_its_pixels_go_with_the_channels_of_the_file(knobs: dict[str, Any], message: str, files: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(model_of(files / "net.onnx"), **knobs).check()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pt2", None, "no such file; give the path of what torch.export.save wrote"),
        ("absent.onnx", None, "no such file; give the path of an ONNX file"),
        ("empty.onnx", b"", "is empty; get it again"),
        ("text.onnx", b"nothing", "cannot be read as ONNX"),
        ("text.pt2", b"nothing", "this PyTorch cannot read it as a file of torch.export.save; save it again"),
    ],
)
def test_what_is_no_network_is_one_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    model = model_of(tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        model.source()
        model.build(3)


def test_other_files_of_torch_are_told_from_programs_of_other_inputs(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "state.pt2")
    torch.jit.trace(network(), torch.zeros(1, *SHAPE)).save(tmp_path / "script.pt2")
    for name in ("state", "script"):
        with pytest.raises(ConfigError, match=r"is not what torch\.export\.save wrote; a state_dict is given"):
            model_of(tmp_path / f"{name}.pt2").check()
    row = torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),))
    torch.export.save(row, tmp_path / "row.pt2")
    with pytest.raises(ConfigError, match="its program should have one input, images"):
        model_of(tmp_path / "row.pt2").check()


class _Several(nn.Module):
    """Another output before the logits, in a dictionary or not."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.network, self.named = network(), named

    def forward(self, x: torch.Tensor) -> Any:
        logits, other = self.network(x).softmax(1), x.mean((2, 3))
        return {"other": other, "logits": logits} if self.named else (other, logits)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_of_several_outputs_the_logits_are_compressed(named: bool, batch: int, tmp_path: Path) -> None:
    """And of probabilities the logarithms."""
    program = torch.export.export(_Several(named=named).eval(), (torch.zeros(batch, *SHAPE),))
    torch.export.save(program, tmp_path / "several.pt2")
    built, _ = build_network(model_of(tmp_path / "several.pt2"), 3)
    images = torch.randn(4, *SHAPE)
    graph, _ = folded(built, input_shape=SHAPE)
    logits = program_of(graph).module()(images)
    torch.testing.assert_close(logits, network()(images).log_softmax(1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda net: net.half(), "takes images in float16; export the network in float32"),
        (lambda net: nn.Sequential(nn.BatchNorm2d(1), net).train(), r"in training mode, .*; call net\.eval\(\) before"),
        (lambda net: nn.Sequential(nn.Dropout(), net).train(), r"in training mode, .*; call net\.eval\(\) before"),
    ],
)
def test_programs_of_another_mode_or_type_are_one_line(changed: Any, message: str, tmp_path: Path) -> None:
    net = changed(network())
    kind = next(net.parameters()).dtype
    torch.export.save(torch.export.export(net, (torch.zeros(2, *SHAPE, dtype=kind),)), tmp_path / "net.pt2")
    with pytest.raises(ConfigError, match=message):
        build_network(model_of(tmp_path / "net.pt2"), 3)


def test_other_classes_are_one_line(files: Path) -> None:
    with pytest.raises(ConfigError, match=r"what it yields has shape \[N, 3\] instead of \[N, 10\]"):
        build_network(model_of(files / "net.onnx"), 10)


def test_an_edit_of_the_file_is_another_source(files: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net.onnx"
    copy.write_bytes((files / "net.onnx").read_bytes())
    assert model_of(copy).source() == model_of(files / "net.onnx").source()
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    assert model_of(copy).source() != model_of(files / "net.onnx").source()


# --------------------------------------------------------------------------- files that are quantized already


@pytest.fixture(scope="module")
def quantized(files: Path) -> Path:
    """The network for one image as ``quantize_static`` quantizes it, with integer operations; beside it with pairs."""

    class Calibration(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            images = np.random.default_rng(1).standard_normal((8, 1, *SHAPE), dtype=np.float32)
            self._images = iter([{"pixels": each} for each in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._images, None)

    for form, by_channel, name in (
        (QuantFormat.QDQ, False, "pairs.onnx"),
        (QuantFormat.QDQ, True, "channels.onnx"),
        (QuantFormat.QOperator, False, "int8.onnx"),
    ):
        quantize_static(
            files / "net.onnx", files / name, Calibration(), quant_format=form, activation_type=QuantType.QUInt8,
            per_channel=by_channel,
        )  # fmt: skip
    return files / "int8.onnx"


def cell_of(*words: str) -> Cell:
    with initialize_config_dir(str(hydra_app.CONF.resolve()), version_base="1.3"):
        config = compose("config", ["model=onnx", *words], return_hydra_config=True)
        return configured.read(config, config.hydra)[0]


@pytest.mark.parametrize(
    ("file", "words", "message"),
    [
        ("int8.onnx", ["method=gptq"], "int8.onnx is quantized already: use method=as_is, or give the float file"),
        ("int8.onnx", ["precision=fp32"], "int8.onnx is quantized already: use method=as_is"),
        ("int8.onnx", ["method=as_is", "backend=fbgemm"], "backend=fbgemm takes no ONNX files as they are"),
        ("int8.onnx", ["method=as_is", "precision=fp32"], "int8.onnx is quantized: use precision=int8, not fp32"),
        ("net.onnx", ["method=as_is"], "net.onnx is float: use precision=fp32, or a method that compresses"),
        ("net.onnx", ["train=default"], "is taken as its file has it: use train=pretrained, not default"),
        ("int8.onnx", ["method=as_is"], None),
        ("net.onnx", ["method=as_is", "precision=fp32"], None),
    ],
)
def test_what_does_not_go_together_is_one_line(
    file: str, words: list[str], message: str | None, files: Path, quantized: Path
) -> None:
    reason = cell_of(f"model.file={files / file}", *words).skip_reason()
    assert reason is None if message is None else message in str(reason)


def test_a_quantized_file_is_timed_against_its_float_file(files: Path, quantized: Path) -> None:
    cell = cell_of(f"model.file={quantized}", f"model.float_file={files / 'net.onnx'}", "method=as_is")
    twin = cell_of(f"model.file={files / 'net.onnx'}", "method=as_is", "precision=fp32")
    assert cell.twin == twin
    assert stages.BASELINE.key_of(cell) == stages.BASELINE.key_of(twin)
    assert stages.ARTIFACT.key_of(cell) != stages.ARTIFACT.key_of(twin)
    alone = cell_of(f"model.file={quantized}", "method=as_is")
    assert alone.twin is alone


@pytest.mark.parametrize(("engine", "name"), [("onnxruntime", "int8.onnx"), ("openvino", "pairs.onnx")])
def test_an_engine_gets_the_file_itself(engine: str, name: str, quantized: Path, tmp_path: Path) -> None:
    file = quantized.with_name(name)
    cell = cell_of(f"model.file={file}", "method=as_is", f"backend={engine}")
    cell.backend.take(file, tmp_path)
    images = np.random.default_rng(0).standard_normal((5, *SHAPE), dtype=np.float32)
    given, meant = cell.backend.load(tmp_path, threads=1)(images), by_onnxruntime(file, images)
    assert given.shape == (5, 3)
    assert np.linalg.norm(given - meant) < 0.1 * np.linalg.norm(meant)
    kernels = cell.backend.profile(tmp_path, images[:1], threads=1)
    assert any(kernel.integer and kernel.macs for kernel in kernels)


@pytest.mark.parametrize("name", ["int8.onnx", "pairs.onnx", "channels.onnx"])
def test_its_layers_are_recorded_as_they_are(name: str, quantized: Path) -> None:
    network, _ = build_network(model_of(quantized.with_name(name)), 3)
    compression = AsIs(name="as_is").compress(network, None, input_shape=SHAPE, scheme=FLOAT32, seed=0)  # type: ignore[arg-type]
    assert [layer.kind for layer in compression.layers] == ["conv2d", "linear"]
    assert all(layer.weights.startswith("s8") and layer.activations.startswith("u8") for layer in compression.layers)
    assert all(("per-channel" in layer.weights) is (name == "channels.onnx") for layer in compression.layers)
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(compression.program.module()(images), network(images))
