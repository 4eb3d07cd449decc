"""How the cost of GPFQ and GPTQ grows with the samples and with the width of a layer.

    python benchmarks/rounding_cost.py

The covariance form promises a cost linear in the samples and quadratic in the inputs of a layer for GPFQ; GPTQ adds the
cubic factorisation of the covariance. Layers of all sizes are rounded in turn, round by round; printed are medians, and
the exponent by which the time grew since the line before (1: linear, 2: quadratic).
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch

from bitsweep.config.precision import Grid
from bitsweep.graphs.im2col import gram
from bitsweep.quantization.rounding.alphabets import Alphabet, rounder
from bitsweep.quantization.rounding.gpfq import gpfq_codes
from bitsweep.quantization.rounding.gptq import gptq_codes
from bitsweep.runtime.environment import current_cpu

GRID = Grid(bits=4, signed=True, symmetric=True, per_channel=True)
OUTPUTS = 64


def gpfq(weight: torch.Tensor, x: torch.Tensor) -> None:
    """One layer, from its inputs to its codes."""
    scale = weight.abs().amax(2, keepdim=True) / GRID.hi
    alphabet = Alphabet(grid=GRID, scale=scale.flatten(), zero_point=torch.zeros(OUTPUTS))
    gpfq_codes(weight, gram([(x, x)]), gram([(x, x)]), scale, torch.zeros(1, 1, 1), rounder(alphabet))


def gptq(weight: torch.Tensor, x: torch.Tensor) -> None:
    """One layer, from its inputs to its codes."""
    scale = weight.abs().amax(2, keepdim=True) / GRID.hi
    gptq_codes(weight, gram([(x, x)]), scale, torch.zeros(1, 1, 1), GRID)


def grow(
    method: Callable[[torch.Tensor, torch.Tensor], None], sizes: list[tuple[int, int]], rounds: int
) -> list[float]:
    """Median seconds for each (inputs, samples)."""
    layers = [(torch.randn(1, OUTPUTS, inputs), torch.randn(1, inputs, samples)) for inputs, samples in sizes]
    method(*layers[0])
    times: list[list[float]] = [[] for _ in layers]
    for _ in range(rounds):
        for layer, seconds in zip(layers, times, strict=True):
            start = time.perf_counter()
            method(*layer)
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def main() -> None:
    """Print both tables for both methods."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    cpu = current_cpu()
    print(f"{OUTPUTS} outputs, {torch.get_num_threads()} threads, {cpu.model} ({cpu.isa}), {rounds} rounds")
    samples = [(576, 1 << power) for power in range(14, 18)]
    widths = [(256 << power, 1 << 14) for power in range(4)]
    for method in (gpfq, gptq):
        for sizes, axis in ((samples, 1), (widths, 0)):
            seconds = grow(method, sizes, rounds)
            print(f"\n{method.__name__:<8}{'inputs':>8}{'samples':>10}{'ms':>10}{'exponent':>10}")
            for i, (size, taken) in enumerate(zip(sizes, seconds, strict=True)):
                ratio = math.log(taken / seconds[i - 1]) / math.log(size[axis] / sizes[i - 1][axis]) if i else None
                grown = f"{ratio:10.2f}" if ratio is not None else ""
                print(f"{'':<8}{size[0]:>8}{size[1]:>10}{1000 * taken:10.1f}{grown}")


if __name__ == "__main__":
    main()
