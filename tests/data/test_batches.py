import numpy as np
import pytest
import torch

from bitsweep.data.batches import Batches
from bitsweep.data.preprocessing import preprocess
from bitsweep.results import Split, Splits

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)


def test_batches_are_made_when_asked_for_with_channels_last() -> None:
    split = Split(images=PIXELS, labels=np.zeros(7, np.int64))
    norm = {"mean_C": (0.5, 0.4, 0.3), "std_C": (0.2, 0.3, 0.4)}
    splits = Splits(train=split, val=split, test=split, classes=("any",), fingerprint="", **norm)
    batches = Batches(images=PIXELS, splits=splits, input_shape=(3, 6, 5), size=3)
    expected = preprocess(PIXELS, input_shape=(3, 6, 5), **norm)
    assert [len(each) for each in batches] == [3, 3, 1] and len(batches) == 3
    assert torch.equal(torch.cat(list(batches)), expected) and torch.equal(batches[-1], expected[6:])
    assert torch.equal(torch.cat(batches[1:]), expected[3:])
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in batches)
    with pytest.raises(IndexError):
        batches[3]
