import pytest

from bitsweep.config.protocol import MeasurementProtocol


def test_a_batch_size_stands_there_once() -> None:
    with pytest.raises(ValueError, match="should hold each size once, and 4 stands there more often"):
        MeasurementProtocol(name="twice", batch_sizes=(1, 4, 4))
