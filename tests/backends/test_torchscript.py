import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsweep.backends.torch_quantized.torchscript import executed, load_script, save_script
from bitsweep.errors import DataError, StoreError
from bitsweep.graphs.tracing import export

IMAGES = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)


class Net(torch.nn.Module):
    """A grouped convolution, and a linear layer whose weights are stored as halves."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 6, 3, groups=3)
        self.register_buffer("stored", torch.randn(4, 6 * 36).half())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.convolution(images)).flatten(1)
        return torch.nn.functional.linear(x, self.stored.to(torch.float32))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def path(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "model.pt"
    save_script(export(network, input_shape=(3, 8, 8)).module(check_guards=False), path, image_shape=(3, 8, 8))
    return path


def test_a_file_computes_what_the_network_does_at_any_batch(path: Path, network: torch.nn.Module) -> None:
    expected = network(torch.from_numpy(IMAGES)).detach().numpy()
    run = load_script(path)
    for size in (1, 5, 2):
        np.testing.assert_allclose(run(IMAGES[:size]), expected[:size], rtol=1e-4, atol=1e-5)


def test_halves_are_stored_as_such_and_cast_once(path: Path) -> None:
    assert path.stat().st_size < 2 * 4 * 216 + 4 * 6 * 3 * 9 + 12_000
    assert not [kernel.op for kernel in executed(path, IMAGES) if "to" in kernel.op.partition(".")[2].split("_")]


def test_kernels_carry_their_multiply_accumulates(path: Path) -> None:
    kernels = executed(path, IMAGES[:2])
    assert [kernel.macs for kernel in kernels if kernel.macs] == [2 * 36 * 6 * 9, 2 * 4 * 216]
    assert not any(kernel.integer for kernel in kernels)
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    assert all(kernel.ms > 0 for kernel in kernels if kernel.macs)


@pytest.mark.parametrize("images", [IMAGES[:, :, :4], IMAGES[0], IMAGES.astype(np.float64)])
def test_other_images_are_refused(path: Path, images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"float32 \[N, 3, 8, 8\]"):
        load_script(path)(images)


def test_a_broken_file_is_named(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(path.read_bytes()[:-100])
    for file in (broken, tmp_path / "absent.pt"):
        with pytest.raises(StoreError, match=f"{file.name} cannot be loaded"):
            load_script(file)


@pytest.mark.slow
def test_running_a_file_imports_no_compiler(path: Path) -> None:
    program = (
        "import json, sys; from pathlib import Path\n"
        "from bitsweep.backends.torch_quantized.torchscript import load_script\n"
        f"load_script(Path({str(path)!r}))\n"
        "print(json.dumps(sorted({'torchao', 'torchvision', 'onnx'} & set(sys.modules))))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(finished.stdout) == []
    assert "deprecated" not in finished.stderr
