from pathlib import Path

import numpy as np
import pytest
import torch

from bitsweep.errors import DataError, StoreError
from bitsweep.graphs import program as programs
from bitsweep.graphs.constants import folded_graph
from bitsweep.graphs.program import inference_fn, load_program, logits_of, profile_of, save_program

IMAGES = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)


class Net(torch.nn.Module):
    """Weights stored as codes and as halves."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("codes", torch.randint(-127, 128, (4, 3, 3, 3), dtype=torch.int8, generator=generator))
        self.register_buffer("scale", torch.rand(4, generator=generator))
        self.register_buffer("zero_point", torch.zeros(4, dtype=torch.int8))
        self.register_buffer("stored", torch.randn(5, 4 * 6 * 6, generator=generator).half())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.scale, self.zero_point, 0, -127, 127, torch.int8
        )
        x = torch.relu(torch.conv2d(images, weight))
        return torch.nn.functional.linear(x.flatten(1), self.stored.float())


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(Net(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))


def test_logits_are_those_of_the_network(program: torch.export.ExportedProgram) -> None:
    expected = Net()(torch.from_numpy(IMAGES)).numpy()
    logits_NK = logits_of(program, [IMAGES[:4], IMAGES[4:]])
    assert logits_NK.dtype == np.float32
    np.testing.assert_allclose(logits_NK, expected, rtol=1e-5, atol=1e-3)
    fast = inference_fn(program, memory_format=torch.channels_last)
    np.testing.assert_allclose(fast(IMAGES), expected, rtol=1e-4, atol=1e-2)


def test_a_program_stays_where_it_is_when_a_copy_moves(program: torch.export.ExportedProgram) -> None:
    """Nothing of the copy does, on a device that computes shapes alone, and that refuses tensors of any other."""
    graph = programs._laid_out(program, torch.channels_last, "meta")  # type: ignore[arg-type]
    assert {buffer.device.type for buffer in graph.buffers()} == {"meta"}
    logits_NK = graph(torch.zeros(4, 3, 8, 8, device="meta"))
    assert (logits_NK.device.type, logits_NK.shape) == ("meta", (4, 5))
    assert {value.device.type for value in [*program.state_dict.values(), *program.constants.values()]} == {"cpu"}
    assert logits_of(program, [IMAGES]).shape == (len(IMAGES), 5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_narrow_codes_are_stored_packed(bits: int, tmp_path: Path) -> None:
    """Under 6 bits a code takes the bits that it needs; what is read back computes the same."""

    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            high = (1 << bits - 1) - 1
            self.high = high
            self.register_buffer("codes", torch.randint(-high, high + 1, (10, 30_000), dtype=torch.int8))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            weight = torch.ops.quantized_decomposed.dequantize_per_tensor(
                self.codes, 0.5, 0, -self.high, self.high, torch.int8
            )
            return torch.nn.functional.linear(images.flatten(1), weight[:, :192])

    batch = torch.export.Dim("batch")
    program = torch.export.export(Narrow(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    expected = logits_of(program, [IMAGES])
    save_program(program, tmp_path / "program.pt2")
    assert np.array_equal(logits_of(load_program(tmp_path / "program.pt2"), [IMAGES]), expected)
    assert np.array_equal(logits_of(program, [IMAGES]), expected)
    needed = 300_000 * {2: 64 / 40, 4: 4, 8: 8}[bits] / 8
    assert needed <= (tmp_path / "program.pt2").stat().st_size < needed + 30_000


def test_what_depends_on_parameters_alone_is_computed_once(program: torch.export.ExportedProgram) -> None:
    graph = folded_graph(program)
    operations = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not [name for name in operations if "dequantize" in name or "to.dtype" in name or "_assert" in name]
    assert sorted(tuple(value.shape) for value in graph.state_dict().values()) == [(4, 3, 3, 3), (5, 144)]


def test_kernels_carry_their_multiply_accumulates(program: torch.export.ExportedProgram) -> None:
    kernels = profile_of(program, IMAGES[:2])
    macs = {kernel.op: kernel.macs for kernel in kernels if kernel.macs}
    assert macs == {"aten.conv2d.default": 2 * 6 * 6 * 4 * 3 * 3 * 3, "aten.linear.default": 2 * 5 * 144}
    assert "aten.relu.default" in {kernel.op for kernel in kernels}
    assert not any(kernel.integer for kernel in kernels)


@pytest.mark.parametrize("images", [IMAGES[:, :, :4], IMAGES[0], IMAGES.astype(np.float64)])
def test_other_images_are_refused(program: torch.export.ExportedProgram, images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"float32 \[N, 3, 8, 8\]"):
        inference_fn(program)(images)


def test_a_program_is_read_back(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    save_program(program, path)
    np.testing.assert_array_equal(logits_of(load_program(path), [IMAGES]), logits_of(program, [IMAGES]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"program\.pt2 cannot be loaded"):
        load_program(path)
