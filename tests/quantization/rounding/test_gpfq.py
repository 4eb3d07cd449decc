"""GPFQ against the recursion of the papers restated neuron by neuron."""

import pytest
import torch

from bitsweep.config.precision import Grid
from bitsweep.quantization.rounding.alphabets import Alphabet, rounder
from bitsweep.quantization.rounding.gpfq import gpfq_codes, gpfq_codes_of_samples

GRID = Grid(bits=3, signed=True, symmetric=True)
ALPHABET = Alphabet(grid=GRID, scale=torch.tensor(0.5), zero_point=torch.tensor(0))
QPARAMS = torch.full((1, 1, 1), 0.5), torch.zeros(1, 1, 1)


def problem(groups: int = 2, samples: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(groups, 4, 9, generator=generator)
    inputs = torch.randn(groups, 9, samples, generator=generator)
    rounded = inputs + 0.1 * torch.randn(groups, 9, samples, generator=generator)
    inputs[:, 5] = rounded[:, 5] = 0
    return weight, inputs, rounded


def naive(weight_I: torch.Tensor, X: torch.Tensor, X_rounded: torch.Tensor) -> list[float]:
    u, codes = torch.zeros(X.shape[1], dtype=torch.float64), []
    for w, x, x_rounded in zip(weight_I.double(), X.double(), X_rounded.double(), strict=True):
        energy = x_rounded @ x_rounded
        argument = x_rounded @ (u + w * x) / energy if energy else torch.tensor(0.0)
        q = (argument / 0.5).round().clamp(-3, 3)
        u = u + w * x - 0.5 * q * x_rounded
        codes.append(q.item())
    return codes


@pytest.mark.parametrize("block", [2, 128])
def test_both_forms_against_the_formula(block: int) -> None:
    weight, inputs, rounded = problem()
    gram, cross = (rounded.double() @ each.double().mT for each in (rounded, inputs))
    dense = gpfq_codes(weight, gram, cross, *QPARAMS, rounder(ALPHABET), block=block)
    of_samples = gpfq_codes_of_samples(weight, inputs, rounded, *QPARAMS, rounder(ALPHABET))
    expected = [[naive(w, inputs[g], rounded[g]) for w in weight[g]] for g in range(2)]
    assert dense.tolist() == expected
    assert of_samples.tolist() == expected
    assert not dense[:, :, 5].any()


def test_outputs_are_followed_better_than_by_nearest_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 8, 200, generator=generator)
    x = torch.randn(1, 200, 50, generator=generator)
    gram = x.double() @ x.double().mT
    codes = gpfq_codes(weight, gram, gram, *QPARAMS, rounder(ALPHABET))
    nearest = rounder(ALPHABET)(weight, *QPARAMS)
    errors = [((weight - 0.5 * each).double() @ x.double()).square().sum() for each in (codes, nearest)]
    assert errors[0] < 0.5 * errors[1]
