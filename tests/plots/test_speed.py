from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsweep.plots.speed import draw_batches, draw_latency


def samples(*sizes: int) -> dict[str, np.ndarray]:
    """Two ms for an image by fp32, one by the candidate, in blocks of ten; and one run of a second."""
    random, found = np.random.default_rng(0), {}
    for size in sizes:
        for racer, ms in (("fp32", 2.0), ("candidate", 1.0)):
            found[f"{racer}_b{size}_ms"] = size * ms * random.uniform(0.99, 1.01, 60)
            found[f"{racer}_b{size}_block_lengths"] = np.full(6, 10)
    found["fp32_b1_ms"][-1] = 1000
    return found


def test_latencies_and_their_blocks(drawn: list[Any], tmp_path: Path) -> None:
    draw_latency(samples(1), 1, tmp_path / "picture.png", name="a cell", after="int8")
    spread, blocks = drawn[0].axes
    assert [text.get_text() for text in spread.get_legend().get_texts()] == [
        "fp32, same engine: p50 2.00 ms",
        "int8: p50 1.00 ms",
    ]
    assert spread.get_title() == "120 runs, 1 of them slower than what is shown"
    for line, ms in zip(blocks.lines, (2, 1), strict=True):
        assert list(line.get_ydata()) == pytest.approx([ms] * 6, rel=0.02)


def test_throughput_and_speedup_against_the_batch(drawn: list[Any], tmp_path: Path) -> None:
    metrics = {f"speedup{end}{suffix}": 2.0 for end in ("", "_low", "_high") for suffix in ("", "_b8")}
    draw_batches(metrics, samples(1, 8), (1, 8), tmp_path / "picture.png", name="a cell", after="int8")
    throughput, speedup = drawn[0].axes
    for line, images_s in zip(throughput.lines, (500, 1000), strict=True):
        assert list(line.get_ydata()) == pytest.approx([images_s] * 2, rel=0.02)
    assert list(speedup.lines[0].get_ydata()) == [2, 2]
    assert [tick.get_text() for tick in throughput.get_xticklabels()] == ["1", "8"]


def test_a_network_without_a_rival(drawn: list[Any], tmp_path: Path) -> None:
    alone = {name: values for name, values in samples(1, 8).items() if name.startswith("candidate")}
    draw_latency(alone, 1, tmp_path / "latency.png", name="a cell", after="fp32")
    draw_batches({}, alone, (1, 8), tmp_path / "batches.png", name="a cell", after="fp32")
    assert len(drawn[0].axes[1].lines) == len(drawn[1].axes[0].lines) == 1
    assert len(drawn[1].axes) == 1
