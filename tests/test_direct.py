"""A network at hand: compressed to a program, lowered to a file, without a sweep."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitsweep as bs
from bitsweep.errors import ConfigError, DataError

DOCS = Path(__file__).parents[1] / "docs" / "python.md"
IMAGES = torch.linspace(-2, 2, 16 * 2 * 12 * 10).reshape(16, 2, 12, 10).sin()


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return small_network()


@pytest.fixture(scope="module")
def program(network: torch.nn.Module) -> Any:
    return bs.compress(network, IMAGES)


def test_a_program_is_near_its_network_and_leaves_it_alone(network: torch.nn.Module, program: Any) -> None:
    assert network.training and all(
        torch.equal(one, other)
        for one, other in zip(network.state_dict().values(), small_network().state_dict().values(), strict=True)
    )
    expected = small_network().eval()(IMAGES)
    assert (program(IMAGES) - expected).abs().max() < 0.02 * expected.abs().max()
    assert np.array_equal(program(IMAGES.numpy()), program(IMAGES).numpy())
    assert list(program.layers["kind"]) == ["conv2d", "linear"]
    assert set(program.layers["weights"].str[:2]) <= {"s8", "s7"}
    # Weights and biases in 8 and 32 bits, and a scale of 32 for each channel.
    assert 8e6 * program.size_mb == pytest.approx(8 * (72 + 12) + 2 * 32 * (4 + 3), rel=0.02)


def test_an_array_and_batches_are_the_same_images(network: torch.nn.Module, program: Any) -> None:
    for given in (IMAGES.numpy(), iter([IMAGES[:9], IMAGES[9:].numpy()]), [(IMAGES, torch.arange(16))]):
        ranges = bs.compress(network, given).layers["activation_range"]
        assert list(ranges) == list(program.layers["activation_range"])


def test_only_as_many_batches_are_taken_as_images_are_asked_for(network: torch.nn.Module) -> None:
    taken = []

    def batches() -> Any:
        for number in range(4):
            taken.append(number)
            yield IMAGES

    bs.compress(network, batches(), settings="method.calibration_images=20")
    assert taken == [0, 1]


@pytest.mark.parametrize(("given", "tables"), [(IMAGES, []), ([(IMAGES, torch.arange(16) % 3)], ["stages"])])
def test_steps_are_evaluated_where_there_are_labels(network: torch.nn.Module, given: Any, tables: list[str]) -> None:
    told = bs.compress(network, given, method="three_sigma", precision="int8_symmetric").tables
    assert [name for name in told if name == "stages"] == tables
    assert not tables or told["stages"].stage[0] == "before"


def test_methods_that_learn_take_labels(network: torch.nn.Module) -> None:
    batches = [(IMAGES, torch.arange(16) % 3)] * 2
    learned = bs.compress(network, batches, method="qat", settings="method.epochs=1 method.max_steps=1")
    assert learned(IMAGES).shape == (16, 3)
    with pytest.raises(ConfigError, match=r"method=qat: learns from labels; give batches of \(images, labels\)"):
        bs.compress(network, IMAGES, method="qat")


def test_a_lowered_file_says_how_it_runs_without_this_project(program: Any, tmp_path: Path) -> None:
    lowered = bs.lower(program, "onnxruntime", tmp_path / "lowered")
    by_engine = lowered(IMAGES.numpy())
    assert np.abs(by_engine - program(IMAGES).numpy()).max() < 0.02
    assert lowered.size_mb > program.size_mb and lowered.needs[-1].startswith("numpy==")
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    alone = lowered.how + (
        f"\nimport numpy, sys\nnumpy.save({str(tmp_path / 'logits.npy')!r}, "
        f"infer(numpy.load({str(tmp_path / 'images.npy')!r})))\nassert 'bitsweep' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", alone], check=True)
    assert np.allclose(np.load(tmp_path / "logits.npy"), by_engine, atol=1e-5)


def test_an_engine_without_integer_kernels_takes_floats(network: torch.nn.Module, tmp_path: Path) -> None:
    exact = bs.compress(network, IMAGES, method="none", precision="fp32", backend="torch")
    by_engine = bs.lower(exact, "torch", tmp_path / "lowered")(IMAGES.numpy())
    assert np.allclose(by_engine, exact(IMAGES).numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="backend=torch has no integer kernels"):
        bs.compress(network, IMAGES, backend="torch")


def test_a_program_for_other_kernels_is_refused(program: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other places .* than onnxruntime, .*: compress with backend=openvino"):
        bs.lower(program, "openvino", tmp_path / "new")
    as_asked = bs.compress(small_network(), IMAGES, backend="reference")
    with pytest.raises(ConfigError, match=r"backend=fbgemm: takes weights .*\b7 .* has weights s8 .*, for reference"):
        bs.lower(as_asked, "fbgemm", tmp_path / "new")
    (tmp_path / "full").write_text("")
    with pytest.raises(ConfigError, match="is not empty; name a new one"):
        bs.lower(program, "onnxruntime", tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "gptqq"}, "method=gptqq: no such choice; did you mean gptq"),
        ({"precision": "int9"}, "precision=int9: no such choice"),
        ({"backend": "onnx"}, "backend=onnx: no such choice; did you mean .* onnxruntime"),
        ({"method": "gptq", "precision": "fp16"}, "rounds to integers"),
        ({"method": "as_is"}, "takes files as they are"),
        ({"method": "ptq,gptq"}, "2 cells; give one value each"),
        ({"settings": "method.percentil=3"}, "did you mean method.percentile"),
    ],
)
def test_wrong_choices_are_one_line(network: torch.nn.Module, given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        bs.compress(network, IMAGES, **given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"\[2, 12, 10\] given; give all as float \[N, C, H, W\]"),
        ([IMAGES, IMAGES[:, :, 1:]], r"\[16, 2, 11, 10\] given, after \[16, 2, 12, 10\]"),
        (IMAGES[:, :1], r"the network does not take \[2, 1, 12, 10\]"),
        (IMAGES / 0, "not finite"),
        ([], "there are none"),
        ("images", "a str given"),
        (3, "a int given"),
        ([object()], "no array of numbers|give all as float"),
    ],
)
def test_what_are_no_images_is_one_line(network: torch.nn.Module, images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        bs.compress(network, images)
    assert "\n" not in str(raised.value)


def test_a_network_without_logits_is_refused() -> None:
    with pytest.raises(DataError, match=r"it yields \[2, 2, 12, 10\] for 2 images; wrap it"):
        bs.compress(torch.nn.ReLU(), IMAGES)


def test_the_programs_of_the_docs_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _sweep, *programs = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for text in programs:
        exec(text, names)
    assert "from engine import load" in capsys.readouterr().out
    assert (workplace / "lowered" / "model.onnx").exists()


@pytest.mark.parametrize("backend", ["torch", "fbgemm", "qnnpack"])
def test_threads_and_kernels_of_the_caller_stay(backend: str, network: torch.nn.Module, tmp_path: Path) -> None:
    if backend not in ("torch", *torch.backends.quantized.supported_engines):
        pytest.skip("PyTorch has no such kernels on this CPU")
    threads, kernels = torch.get_num_threads(), torch.backends.quantized.engine
    torch.set_num_threads(7)
    try:
        precision = "fp32" if backend == "torch" else "int8"
        compressed = bs.compress(
            network, IMAGES, method="none" if backend == "torch" else "ptq", precision=precision, backend=backend
        )
        lowered = bs.lower(compressed, backend, tmp_path / "lowered")
        first, second = (lowered(IMAGES.numpy()) for _ in range(2))
        assert np.array_equal(first, second)
        assert (torch.get_num_threads(), torch.backends.quantized.engine) == (7, kernels)
    finally:
        torch.set_num_threads(threads)
