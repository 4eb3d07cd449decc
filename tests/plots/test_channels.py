from pathlib import Path
from typing import Any

import pytest

from bitsweep.plots.channels import draw_channels
from bitsweep.results import Table


def test_channels_far_above_the_median_are_marked_and_the_largest_is_named(drawn: list[Any], tmp_path: Path) -> None:
    values = {"stem": [1.0, 2.0, 70.0, 3.0, 0.0], "weights of head": [0.01, 0.012]}
    rows = [
        (name, "before: alone 1.1 dB", shown, channel, value)
        for (name, each), shown in zip(values.items(), ("span of values", "shift of the mean / std"), strict=True)
        for channel, value in enumerate(each)
    ]
    table = Table(name="channels", columns=("what is rounded", "when", "shown", "channel", "value"), rows=tuple(rows))
    draw_channels(table, tmp_path / "channels.png")
    stem, head = drawn[0].axes
    assert (stem.get_yscale(), stem.get_ylabel(), head.get_ylabel()) == (
        "log", "span of values", "shift of the mean / std",
    )  # fmt: skip
    assert stem.get_title() == "stem\nbefore: alone 1.1 dB"
    normal, marked = (points.get_offsets().tolist() for points in stem.collections)
    assert sorted(normal) == [[0, 1], [1, 2], [3, 3]] and marked == [[2, 70]]
    assert [text.get_text() for text in stem.texts] == ["median 2", "channel 2: 70"]
    assert stem.lines[0].get_ydata()[0] == 2
    assert len(head.collections[1].get_offsets()) == 0
    assert head.get_ylim() == pytest.approx((0.01 / 1.5, 0.036))
