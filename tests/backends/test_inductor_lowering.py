from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor import config as inductor_config

from bitsweep.backends.inductor.lowering import compile_package, for_integer_kernels, inference_fn
from bitsweep.config.precision import Grid, Scheme
from bitsweep.errors import CompressionError
from bitsweep.graphs import tracing
from bitsweep.graphs.ops import quantized, reads_attribute
from bitsweep.graphs.program import logits_of
from bitsweep.methods.dynamic import DynamicQuantization
from bitsweep.methods.ptq import PostTrainingQuantization
from tests.quantization.networks import SIZE, Mixed, images, noise_splits


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_form_that_fusions_know_means_the_same(per_channel: bool) -> None:
    scheme = Scheme(
        weights=Grid(bits=7, signed=True, symmetric=True, per_channel=per_channel),
        activations=Grid(bits=8, signed=False, symmetric=False),
        arithmetic="integer",
    )
    torch.manual_seed(0)
    method = PostTrainingQuantization(name="ptq", calibration_images=32)
    program = method.compress(
        Mixed().eval(), noise_splits(SIZE), input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0
    ).program
    graph = for_integer_kernels(program)
    (batch,) = images(4, batch=4)
    np.testing.assert_array_equal(graph(batch).detach().numpy(), logits_of(program, [batch.numpy()]))
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    parameters = [node for node in nodes if "dequantize" in node.name and reads_attribute(node.args[0])]
    assert len(parameters) == 7
    assert {node.target for node in parameters} == {quantized.dequantize_per_channel.default}
    assert torch.int32 not in {value.dtype for value in graph.buffers()}


@pytest.mark.slow
def test_ranges_that_are_chosen_at_run_time_hold_zero(tmp_path: Path) -> None:
    """Also of averages behind a rectifier, which are all above it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 10)).eval()
    scheme = Scheme(
        weights=Grid(bits=7, signed=True, symmetric=True, per_channel=True),
        activations=Grid(bits=8, signed=False, symmetric=False),
        arithmetic="integer",
    )
    program = (
        DynamicQuantization(name="dynamic")
        .compress(model, noise_splits(SIZE), input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0)
        .program
    )
    compile_package(program, tmp_path / "model.pt2")
    run, (batch,) = inference_fn(tmp_path / "model.pt2"), images(4, batch=4)
    for values in (batch.abs() + 1, -batch.abs() - 1, batch):
        np.testing.assert_allclose(run(values.numpy()), logits_of(program, [values.numpy()]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_is_not_compiled_is_named(tmp_path: Path) -> None:
    program = tracing.export(Mixed().eval(), input_shape=(3, SIZE, SIZE))
    with (
        inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(CompressionError, match="Inductor does not compile the program: "),
    ):
        compile_package(program, tmp_path / "model.pt2")
