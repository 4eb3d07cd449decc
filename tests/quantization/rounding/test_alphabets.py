import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsweep.config.precision import Grid
from bitsweep.quantization.rounding.alphabets import Alphabet, lybrand_alphabet, rounder, zhang_alphabet


def grid(bits: int) -> Grid:
    return Grid(bits=bits, signed=True, symmetric=bits > 2, per_channel=True)


TERNARY = Grid(bits=2, signed=True, symmetric=True, per_channel=True)


def elements(alphabet: Alphabet) -> list[float]:
    """Every value that weights can become."""
    line = torch.linspace(-100, 100, 20001) * alphabet.scale
    return sorted({round(code * alphabet.scale.item(), 4) for code in _codes(alphabet, line)})


def _codes(alphabet: Alphabet, weight: torch.Tensor) -> list[int]:
    return rounder(alphabet)(weight, alphabet.scale, alphabet.zero_point).long().tolist()


@pytest.mark.parametrize(("of", "M"), [(TERNARY, 3), (grid(2), 4), (grid(3), 8), (grid(4), 16)], ids=str)
def test_lybrand(of: Grid, M: int) -> None:
    weight = torch.tensor([[-4.0, -2.0, 1.0], [0.5, 2.0, 3.0]])
    expected = (1.5 * 2.0 * torch.linspace(-1, 1, M)).tolist()
    assert elements(lybrand_alphabet(weight, of, radius=1.5)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("of", "K"), [(TERNARY, 1), (grid(2), 2), (grid(3), 4), (grid(4), 8)], ids=str)
def test_zhang(of: Grid, K: int) -> None:
    weight = torch.tensor([[-4.0, -2.0, 1.0], [0.5, 2.0, 3.0]])
    alphabet = zhang_alphabet(weight, of, radius=0.8, quantile=1.0)
    delta = 0.8 * (4 + 3) / 2 / K
    assert elements(alphabet) == pytest.approx([k * delta for k in range(-K, K + 1)], abs=1e-3)
    assert alphabet.grid.hi - alphabet.grid.lo + 1 == 2 * K + 1


@pytest.mark.parametrize("make", [lybrand_alphabet, zhang_alphabet])
def test_a_layer_of_zeros(make: object) -> None:
    knobs = {"radius": 1.0} | ({"quantile": 1.0} if make is zhang_alphabet else {})
    alphabet = make(torch.zeros(2, 3), grid(3), **knobs)  # type: ignore[operator]
    assert alphabet.scale > 0


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20), st.booleans())
def test_the_nearest_element_is_chosen(weights: list[float], odd: bool) -> None:
    size = 7 if odd else 4
    alphabet = Alphabet(
        grid=Grid(bits=4, signed=True, symmetric=True, levels=0 if odd else 9),
        scale=torch.tensor(0.5),
        zero_point=torch.tensor(0),
        odd=odd,
    )
    choices = [0.5 * k for k in range(-size, size + 1) if not odd or k % 2]
    for weight, code in zip(weights, _codes(alphabet, torch.tensor(weights)), strict=True):
        assert 0.5 * code in choices
        assert abs(0.5 * code - weight) <= min(abs(choice - weight) for choice in choices) + 1e-6


def test_thresholds() -> None:
    alphabet = Alphabet(
        grid=Grid(bits=4, signed=True, symmetric=True), scale=torch.tensor(1.0), zero_point=torch.tensor(0)
    )
    x = torch.tensor([-2.6, -0.8, 0.6, 1.6])
    qparams = alphabet.scale, alphabet.zero_point
    assert rounder(alphabet, threshold="hard", sparsity=0.7)(x, *qparams).tolist() == [-3, -1, 0, 2]
    assert rounder(alphabet, threshold="soft", sparsity=0.7)(x, *qparams).tolist() == [-2, 0, 0, 1]


def test_stochastic_rounding_keeps_the_mean() -> None:
    alphabet = Alphabet(
        grid=Grid(bits=4, signed=True, symmetric=True), scale=torch.tensor(1.0), zero_point=torch.tensor(0)
    )
    to_code = rounder(alphabet, generator=torch.Generator().manual_seed(0))
    codes = to_code(torch.full((100_000,), 1.3), alphabet.scale, alphabet.zero_point)
    assert set(codes.tolist()) == {1.0, 2.0}
    assert codes.mean().item() == pytest.approx(1.3, abs=5 * 0.46 / 316)
