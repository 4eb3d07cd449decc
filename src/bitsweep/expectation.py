"""What a baseline is expected to reach, so that a sweep does not go on with another network than was meant."""

from typing import Annotated

import numpy as np
from pydantic import Field

from bitsweep.cell import Cell
from bitsweep.cell_results import splits_of, trained_of
from bitsweep.config.configurable import configurable
from bitsweep.results import Array
from bitsweep.runtime.store import Store
from bitsweep.stats import wilson_interval


@configurable
class Expectation:
    """What is known of a network from elsewhere, its own script for instance.

    Attributes:
        top1: share of the test images that its baseline classifies right; None for any.
    """

    top1: Annotated[float, Field(gt=0, le=1)] | None = None

    def unmet(self, cell: Cell, store: Store) -> str:
        """Why the baseline of a cell is not the network that was meant; empty where it may be that.

        It is another one where the expected accuracy lies outside of the interval of what was found.
        """
        if self.top1 is None:
            return ""
        trained, labels_N = trained_of(cell, store), np.asarray(splits_of(cell, store).test.labels)
        said_N, count, confidence = trained.test_logits_NK.argmax(1), len(labels_N), cell.protocol.confidence
        right = int((said_N == labels_N).sum())
        low, high = wilson_interval(right, count, confidence)
        if low <= self.top1 <= high:
            return ""
        _, renamed_high = wilson_interval(
            _renamed(said_N, labels_N, trained.test_logits_NK.shape[1]), count, confidence
        )
        causes = (
            "normalisation (model.mean, model.std, model.normalization), order of channels (model.channel_order), "
            "resizing and cropping (model.resize, model.image_size, model.interpolation), order of the classes"
        )
        if high < self.top1 <= renamed_high:
            causes = "order of the classes: in another one it would be met"
        return (
            f"expect.top1={self.top1}: the baseline has {right / count:.4f} [{low:.4f}, {high:.4f}] on {count} test "
            f"images, so it is not the network that was meant; usually wrong: {causes}"
        )


def _renamed(said_N: Array, labels_N: Array, classes: int) -> int:
    """How many images would be right if the classes had the names that fit best."""
    from scipy.optimize import linear_sum_assignment

    counts_KK = np.zeros((classes, classes), np.int64)
    np.add.at(counts_KK, (said_N, labels_N), 1)
    return int(counts_KK[linear_sum_assignment(counts_KK, maximize=True)].sum())
