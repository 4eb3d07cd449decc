import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsweep.graphs.packing import digits_per_word, pack, unpack


@pytest.mark.parametrize(("levels", "count"), [(3, 40), (4, 32), (7, 22), (15, 16), (16, 16), (17, 15), (255, 8)])
def test_codes_in_64_bits(levels: int, count: int) -> None:
    assert digits_per_word(levels) == count


@given(st.integers(-128, 0), st.integers(1, 100), st.integers(1, 200), st.integers(0, 2**31))
def test_packing_loses_nothing(lo: int, span: int, size: int, seed: int) -> None:
    hi = min(lo + span, 127)
    codes = torch.randint(lo, hi + 1, (size,), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    packed = pack(codes, lo, hi)
    assert len(packed) == 8 * -(-size // digits_per_word(hi - lo + 1))
    assert torch.equal(unpack(packed, codes.shape, lo, hi, torch.int8), codes)


def test_the_ends_of_a_word() -> None:
    codes = torch.full((80,), 1, dtype=torch.int8)
    assert torch.equal(unpack(pack(codes, -1, 1), codes.shape, -1, 1, torch.int8), codes)
