import math
from pathlib import Path
from typing import Any

from bitsweep.plots.records import records
from bitsweep.results import Table


def test_bars_of_a_table_and_what_has_no_length(drawn: list[Any], tmp_path: Path) -> None:
    rows = (("first", 12.5, 90.0), ("second", math.inf, 91.0))
    table = Table(name="sensitivity", columns=("layer", "SQNR dB", "top-1 %"), rows=rows)
    for name, write in records((), [table]).items():
        write(tmp_path / name)
    (noise, accuracy) = drawn[0].axes
    assert [bar.get_width() for bar in noise.patches] == [12.5, 0]
    assert [(text.get_text(), text.get_position()[1]) for text in noise.texts] == [(" inf", 1)]
    assert [bar.get_width() for bar in accuracy.patches] == [90, 91] and not accuracy.texts
