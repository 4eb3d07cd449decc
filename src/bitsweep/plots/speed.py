"""How fast an artifact ran, next to the same engine's fp32."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.plots.figures import AFTER, BEFORE, label, panels, save
from bitsweep.results import Array

#: Times the slower median, beyond which runs are counted and not drawn.
_BINS, _SHOWN_MEDIANS = 60, 3


def draw_latency(samples_ms: Mapping[str, Array], batch: int, path: Path, *, name: str, after: str) -> None:
    """Draw how latencies are spread, and each block's median in the order in which blocks ran.

    Args:
        samples_ms: what ``latency_samples.npz`` holds.
        batch: the batch size whose samples are drawn.
    """
    racers = [
        (racer, colour, what)
        for racer, colour, what in (("fp32", BEFORE, "fp32, same engine"), ("candidate", AFTER, after))
        if f"{racer}_b{batch}_ms" in samples_ms
    ]
    figure, (spread, blocks) = panels(
        f"{name}: latency of a batch of {batch}", columns=2, width=4.2, height=2.5, left=0.75
    )
    all_ms = np.concatenate([samples_ms[f"{racer}_b{batch}_ms"] for racer, _, _ in racers])
    slowest_ms = max(np.median(samples_ms[f"{racer}_b{batch}_ms"]) for racer, _, _ in racers)
    high = min(all_ms.max(), _SHOWN_MEDIANS * slowest_ms)
    edges = np.linspace(all_ms.min(), high, _BINS + 1)
    for racer, colour, what in racers:
        own_ms = samples_ms[f"{racer}_b{batch}_ms"]
        p50 = float(np.median(own_ms))
        share = 100 * np.histogram(own_ms, edges)[0] / len(own_ms)
        spread.stairs(share, edges, fill=True, color=colour, alpha=0.6, label=f"{what}: p50 {p50:#.3g} ms")
        spread.axvline(p50, color=colour, linewidth=1.5)
        ends = np.cumsum(samples_ms[f"{racer}_b{batch}_block_lengths"])[:-1]
        parts = np.split(own_ms, ends)
        low_ms, mid_ms, high_ms = np.array([np.quantile(part, (0.25, 0.5, 0.75)) for part in parts]).T
        blocks.plot(range(1, len(parts) + 1), mid_ms, ".-", color=colour, label=what)
        blocks.fill_between(range(1, len(parts) + 1), low_ms, high_ms, color=colour, alpha=0.25, linewidth=0)
    beyond = np.count_nonzero(all_ms > high)
    label(
        spread,
        f"{len(all_ms)} runs, {beyond} of them slower than what is shown",
        "latency (ms)",
        "share of the runs (%)",
        legend=True,
    )
    label(blocks, "median and quartiles of each block", "block, in the order of time", "latency (ms)", legend=True)
    blocks.set_ylim(0, high)
    save(figure, path)


def draw_batches(
    metrics: Mapping[str, float],
    samples_ms: Mapping[str, Array],
    batches: Sequence[int],
    path: Path,
    *,
    name: str,
    after: str,
) -> None:
    """Draw throughput against the batch size, and speed-up if there was something to compare with.

    Args:
        batches: sizes that were run, the protocol's first one first.
    """
    sizes = sorted(batches)
    suffix = {size: "" if size == batches[0] else f"_b{size}" for size in sizes}
    compared = [size for size in sizes if f"speedup{suffix[size]}" in metrics]
    figure, axes = panels(f"{name}: batches", columns=2 if compared else 1, width=4.2, height=2.5, left=0.75)
    for racer, colour, what in (("fp32", BEFORE, "fp32, same engine"), ("candidate", AFTER, after)):
        known = [size for size in sizes if f"{racer}_b{size}_ms" in samples_ms]
        images_s = [1000 * size / np.median(samples_ms[f"{racer}_b{size}_ms"]) for size in known]
        if known:
            axes[0].plot(known, images_s, "o-", color=colour, label=what)
    label(axes[0], "throughput", "batch size (images)", "images per second", legend=True)
    axes[0].set_ylim(bottom=0)
    if compared:
        ratios, lows, highs = (
            np.array([metrics[f"{what}{suffix[size]}"] for size in compared])
            for what in ("speedup", "speedup_low", "speedup_high")
        )
        errors = [np.maximum(0, ratios - lows), np.maximum(0, highs - ratios)]
        axes[1].errorbar(compared, ratios, errors, fmt="o-", color=AFTER, capsize=3)
        axes[1].axhline(1, color="0.4", linestyle=":")
        label(axes[1], "speed-up over fp32, with its interval", "batch size (images)", "fp32 time by this time")
    for panel in axes:
        _scale_by_two(panel, sizes)
    save(figure, path)


def _scale_by_two(axes: Any, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
