import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsweep.plots.layers import draw_feature_maps, draw_histograms, draw_layers, write_layers
from bitsweep.results import Distribution, LayerRecord, LayerStats


def records(count: int) -> list[LayerRecord]:
    """Layers of 8 bits; the sixth has the most noise."""
    return [
        LayerRecord(
            name=f"layers.{i}", kind="conv2d", weights="s8", activations="u8", parameters=100 + i,
            stored_bits=8 * (100 + i), sqnr_db=5.0 if i == 5 else 30.0 + i, weight_range=(-1.0, 1.0),
            weight_clipped=0.01, activation_range=(0.0, 6.0), activation_clipped=0.002,
        )
        for i in range(count)
    ]  # fmt: skip


def stats(count: int) -> list[LayerStats]:
    spread = Distribution(low=-2.0, high=2.0, mean=0.5, std=0.25, counts=(1, 10, 100, 10))
    maps_2CHW = np.stack([np.full((3, 4, 5), 1.0), np.full((3, 4, 5), 2.0)])
    maps_2CHW[:, :, 0, 0] = 0
    return [
        LayerStats(
            name=f"layers.{i}",
            weights=spread,
            inputs=spread,
            input_sqnr_db=20.0,
            maps_2CHW=maps_2CHW if i == 1 else None,
        )
        for i in range(count)
    ]


def test_the_table_has_sizes_and_ratios(tmp_path: Path) -> None:
    write_layers(records(3), stats(2), tmp_path / "layers.csv")
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["layers.0", "layers.1", "layers.2"]
    assert (float(rows[1]["fp32_bytes"]), float(rows[1]["stored_bytes"]), float(rows[1]["ratio"])) == (404, 101, 0.25)
    assert [row["input_sqnr_db"] for row in rows] == ["20.0", "20.0", ""]


def test_bars_of_the_largest_layers(drawn: list[Any], tmp_path: Path) -> None:
    draw_layers(records(50), stats(50), tmp_path / "picture.png", name="a cell")
    sizes, ratios, noise = drawn[0].axes
    assert "the 40 largest of 50" in drawn[0].get_suptitle()
    assert [tick.get_text() for tick in sizes.get_yticklabels()] == [f"layers.{i}" for i in range(10, 50)]
    assert {segment[1][0] for segment in ratios.collections[0].get_segments()} == {25}
    assert list(noise.lines[0].get_xdata()) == [30.0 + i for i in range(10, 50)]


def test_histograms_show_range_deviation_and_clipped_share(drawn: list[Any], tmp_path: Path) -> None:
    draw_histograms(records(20), stats(20), tmp_path / "picture.png", name="a cell")
    axes = drawn[0].axes
    titles = [each.get_title() for each in axes]
    assert titles[0] == "layers.0\nclipped 1 %, SQNR 30.0 dB"
    assert titles[6] == "layers.0\nclipped 0.2 %, SQNR 20.0 dB"
    assert any(title.startswith("layers.5\n") for title in titles)
    assert titles[5].startswith("layers.19\n")
    assert "6 of 20 layers" in drawn[0].get_suptitle()
    lines = sorted(line.get_xdata()[0] for line in axes[0].lines)
    assert lines == pytest.approx([-1, 0.5 - 0.75, 1, 0.5 + 0.75])


def test_maps_of_both_in_the_same_units(drawn: list[Any], tmp_path: Path) -> None:
    draw_feature_maps(stats(3), tmp_path / "picture.png", name="a cell", after="int8")
    before, after = drawn[0].axes
    assert [before.get_ylabel(), after.get_ylabel()] == ["fp32", "int8"]
    assert len(before.images) == len(after.images) == 3
    assert before.images[0].get_array()[1, 1] == 1
    assert after.images[0].get_array()[1, 1] == 2
    assert before.get_title(loc="left") == "layers.1, 4 x 5, SQNR 20.0 dB"
