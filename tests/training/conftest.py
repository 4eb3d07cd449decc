"""What tests of training share: the digits."""

import pytest

from bitsweep.data.splits import make_splits
from bitsweep.datasets.digits import Digits
from bitsweep.results import Splits


@pytest.fixture(scope="package")
def digits() -> Splits:
    return make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0)
