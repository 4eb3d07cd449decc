"""Whether an engine's integer kernels hold the largest sums there are.

Kernels for u8 x s8 on x86 without VNNI add pairs of products in 16 bits, and saturate. The instruction set decides the
scheme; this shows on the engine itself that the scheme is right.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from bitsweep.config.backend import Backend
from bitsweep.config.precision import Grid, Scheme
from bitsweep.graphs import ops, tracing
from bitsweep.graphs.program import inference_fn
from bitsweep.quantization.calibration.ranges import minmax_range, minmax_weight_range
from bitsweep.quantization.placement import quantize_activations
from bitsweep.quantization.storing import stored
from bitsweep.quantization.weights import nearest_codes, round_weights
from bitsweep.results import Array

SIZE = 8
#: Largest error that rounding explains; saturated sums are about half of what they should be.
TOLERANCE = 0.02


def largest_products(scheme: Scheme) -> tuple[ExportedProgram, Array]:
    """A program whose every product is that of the largest codes, and the images on which it is.

    A convolution, a depthwise convolution and a linear layer with equal weights see equal values. Depthwise ones have
    kernels of their own, some of them only with padding; zeros around an image make no product larger.

    Returns:
        The program, and float32 images [2, 3, 8, 8].
    """
    assert isinstance(scheme.weights, Grid)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 36, 4),
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim > 1 else 0.0)
    images = torch.full((2, 3, SIZE, SIZE), 2.0)
    graph = tracing.trace(network, input_shape=(3, SIZE, SIZE))
    originals, clipped = ops.layers(graph), dict[str, float]()
    codes = round_weights(graph, partial(nearest_codes, grid=scheme.weights, choose_range=minmax_weight_range))
    if isinstance(scheme.activations, Grid):
        graph, clipped = quantize_activations(graph, scheme.activations, minmax_range, [images])
    return stored(graph, codes, originals=originals, clipped=clipped).program, images.numpy()


def saturates(backend: Backend, scheme: Scheme) -> bool:
    """Whether sums of the largest products come out wrong on an engine.

    Raises:
        BitsweepError: the engine does not take the program.
    """
    program, images = largest_products(scheme)
    with tempfile.TemporaryDirectory() as folder:
        backend.lower(program, Path(folder))
        logits = backend.load(Path(folder), threads=1)(images)
    return are_wrong(logits, inference_fn(program)(images))


def are_wrong(logits: Array, expected: Array) -> bool:
    """Whether logits differ from what they should be by more than rounding explains."""
    return not np.allclose(logits, expected, rtol=TOLERANCE)
