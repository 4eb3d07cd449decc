"""What tests of training share: the digits."""

import pytest

from bitsweep.artifacts import Splits
from bitsweep.datasets.digits import Digits
from bitsweep.splits import make_splits


@pytest.fixture(scope="package")
def digits() -> Splits:
    return make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0)
