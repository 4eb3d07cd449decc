import numpy as np
import pytest

from bitsweep.errors import StoreError
from bitsweep.stage_work import _require_same_network

RECORDED = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)


def test_an_uncompressed_program_must_be_the_network_that_was_trained() -> None:
    _require_same_network(RECORDED, RECORDED)
    _require_same_network(RECORDED + np.float32(1e-4), RECORDED)  # another engine's rounding
    with pytest.raises(StoreError, match=r"other logits than its baseline did after training .*delete the baseline"):
        _require_same_network(RECORDED * np.float32(0.5), RECORDED)
    with pytest.raises(StoreError):
        _require_same_network(np.zeros_like(RECORDED), RECORDED)
