from pathlib import Path
from typing import Any

import pytest

from bitsweep.plots.training import draw_training
from bitsweep.results import Epoch


@pytest.mark.slow
def test_curves_of_every_epoch(drawn: list[Any], tmp_path: Path) -> None:
    history = [
        Epoch(epoch=i, train_loss=2 / (i + 1), val_loss=1 / (i + 1), val_top1=i / 4, lr=0.1 * i, seconds=3 + i)
        for i in range(4)
    ]
    draw_training(history, 2, tmp_path / "picture.png", name="a baseline")
    losses, accuracy, rate, time = drawn[0].axes
    assert [list(line.get_ydata()) for line in losses.lines[:2]] == [[2, 1, 2 / 3, 0.5], [1, 0.5, 1 / 3, 0.25]]
    assert list(accuracy.lines[0].get_ydata()) == [0, 25, 50, 75]
    assert list(rate.lines[0].get_ydata()) == [epoch.lr for epoch in history]
    assert [bar.get_height() for bar in time.patches] == [3, 4, 5, 6]
    assert {axes.lines[-1].get_xdata()[0] for axes in drawn[0].axes} == {2}
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in drawn[0].axes)
