"""Each layer before and after compression: table, bars, histograms of its values, maps of its channels."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.plots.figures import AFTER, BEFORE, drawable_names, label, panels, save, tiles
from bitsweep.results import Distribution, LayerRecord, LayerStats
from bitsweep.text import write_csv

#: Layers that bars and histograms have room for.
_BARS, _HISTOGRAMS = 40, 6
_FLOAT_BITS = 32


def write_layers(records: Sequence[LayerRecord], stats: Sequence[LayerStats], path: Path) -> None:
    """Write a CSV with all that is known of each layer, one a line."""
    seen = {layer.name: layer for layer in stats}
    rows = []
    for record in records:
        fp32_bytes, layer = record.parameters * _FLOAT_BITS / 8, seen.get(record.name)
        rows.append(
            dataclasses.asdict(record)
            | {
                "fp32_bytes": fp32_bytes,
                "stored_bytes": record.stored_bits / 8,
                "ratio": record.stored_bits / 8 / fp32_bytes,
                "weight_mean": layer.weights.mean if layer else None,
                "weight_std": layer.weights.std if layer else None,
                "input_sqnr_db": layer.input_sqnr_db if layer else None,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv([rows[0], *(row.values() for row in rows)], path)


def draw_layers(records: Sequence[LayerRecord], stats: Sequence[LayerStats], path: Path, *, name: str) -> None:
    """Draw size before and after, their ratio, and the noise of weights and inputs: of the largest layers."""
    largest = sorted(range(len(records)), key=lambda index: -records[index].parameters)[:_BARS]
    shown = [records[index] for index in sorted(largest)]
    few = f", the {len(shown)} largest of {len(records)}" if len(shown) < len(records) else ""
    names = drawable_names([record.name for record in shown], 28)
    figure, (sizes, ratios, noise) = panels(
        f"{name}: layers{few}",
        columns=3, width=2.7, height=max(1.6, 0.16 * len(shown)), left=0.25 + 0.065 * max(map(len, names)),
        between=0.2,
    )  # fmt: skip
    places = np.arange(len(shown))
    fp32_bytes = np.array([record.parameters * _FLOAT_BITS / 8 for record in shown])
    stored_bytes = np.array([record.stored_bits / 8 for record in shown])
    least = min(stored_bytes.min(), fp32_bytes.min()) / 2000
    bar = {"linewidth": 5, "capstyle": "butt"}  # one collection of lines is drawn ten times as fast as many bars
    sizes.hlines(places - 0.2, least, fp32_bytes / 1000, color=BEFORE, label="fp32", **bar)
    sizes.hlines(places + 0.2, least, stored_bytes / 1000, color=AFTER, label="as stored", **bar)
    sizes.set_xscale("log")
    sizes.set_xlim(left=least)
    sizes.xaxis.set_major_formatter("{x:g}")
    sizes.minorticks_off()
    ratios.hlines(places, 0, 100 * stored_bytes / fp32_bytes, color=AFTER, **bar)
    ratios.set_xlim(left=0)
    ratios.axvline(100, color="0.4", linestyle=":")
    input_sqnr_db = {layer.name: layer.input_sqnr_db for layer in stats}
    values: tuple[tuple[str, str, list[float | None]], ...] = (
        ("weights", "o", [record.sqnr_db for record in shown]),
        ("what it reads", "D", [input_sqnr_db.get(record.name) for record in shown]),
    )
    for what, marker, decibels in values:
        known = [(decibel, place) for decibel, place in zip(decibels, places, strict=True) if decibel is not None]
        if known:
            noise.plot(*zip(*known, strict=True), marker, markersize=4, label=what)
    legend = any(decibel is not None for _, _, decibels in values for decibel in decibels)
    label(sizes, "weights and biases", "10³ bytes (logarithmic)", "", legend=True)
    label(ratios, "stored by fp32", "bytes (%)", "")
    label(noise, "signal to noise" if legend else "signal to noise: nothing changed", "SQNR (dB)", "", legend=legend)
    for axes in (sizes, ratios, noise):
        axes.set_yticks(places if axes is sizes else [], names if axes is sizes else [])
        axes.set_ylim(len(shown) - 0.5, -0.5)
    save(figure, path)


def draw_histograms(records: Sequence[LayerRecord], stats: Sequence[LayerStats], path: Path, *, name: str) -> None:
    """Draw histograms of weights and inputs of layers, with chosen ranges and three standard deviations.

    Of many layers those whose weights suffered most are drawn, and the first and the last.
    """
    seen = {layer.name: layer for layer in stats}
    pairs = [(record, seen[record.name]) for record in records if record.name in seen]
    inner = sorted(range(1, len(pairs) - 1), key=lambda i: math.inf if (db := pairs[i][0].sqnr_db) is None else db)
    chosen = sorted({0, len(pairs) - 1, *inner[: _HISTOGRAMS - 2]})
    few = f", {len(chosen)} of {len(pairs)} layers" if len(chosen) < len(pairs) else ""
    title = f"{name}: values{few} (blue: the range of codes, red dots: 3 standard deviations)"
    figure, axes = panels(title, rows=2, columns=len(chosen), width=2.0, height=1.5, left=0.35, top=0.45, right=0.1)
    names = drawable_names([pairs[index][0].name for index in chosen], 22)
    for column, (index, short) in enumerate(zip(chosen, names, strict=True)):
        record, layer = pairs[index]
        weights, inputs = axes[column], axes[column + len(chosen)]
        _draw_histogram(weights, layer.weights, record.weight_range)
        _draw_histogram(inputs, layer.inputs, record.activation_range)
        label(weights, f"{short}\n{_clipped(record.weight_clipped, record.sqnr_db)}", "weight", "")
        label(inputs, f"{short}\n{_clipped(record.activation_clipped, layer.input_sqnr_db)}", "value read", "")
    for first in (axes[0], axes[len(chosen)]):
        first.set_ylabel("count (logarithmic)", fontsize=8)
    save(figure, path)


def _draw_histogram(axes: Any, spread: Distribution, ends: tuple[float, float] | None) -> None:
    edges = np.linspace(spread.low, spread.high, len(spread.counts) + 1)
    axes.stairs(np.log10(1 + np.array(spread.counts)), edges, fill=True, color="0.6")
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
    for sign in (-3, 3):
        axes.axvline(spread.mean + sign * spread.std, color="C3", linestyle=":", linewidth=1.2)
    if ends:
        axes.axvspan(*ends, color=AFTER, alpha=0.15)
        for end in ends:
            axes.axvline(end, color=AFTER, linewidth=1)


def _clipped(share: float | None, sqnr_db: float | None) -> str:
    clipped = "no codes" if share is None else f"clipped {100 * share:.2g} %"
    return clipped if sqnr_db is None else f"{clipped}, SQNR {sqnr_db:.1f} dB"


def draw_feature_maps(stats: Sequence[LayerStats], path: Path, *, name: str, after: str) -> None:
    """Draw input channels of some layers for one image, in the float network beside the compressed one.

    A channel has the same colours for the same values in both. The compressed network is run op by op.
    """
    shown = [layer for layer in stats if layer.maps_2CHW is not None]
    widest = max(layer.maps_2CHW.shape[1] for layer in shown if layer.maps_2CHW is not None)
    title = f"{name}: what layers read for one image"
    figure, rows = panels(
        title, rows=2 * len(shown), width=1.1 * widest, height=1.0, left=0.7, right=0.1, bottom=0.05, top=0.25
    )
    for index, layer in enumerate(shown):
        assert layer.maps_2CHW is not None
        noise = "" if layer.input_sqnr_db is None else f", SQNR {layer.input_sqnr_db:.1f} dB"
        height, width = layer.maps_2CHW.shape[2:]
        low, high = (end(axis=(1, 2), keepdims=True) for end in (layer.maps_2CHW[0].min, layer.maps_2CHW[0].max))
        for row, what in enumerate(("fp32", after)):
            scaled_CHW = (layer.maps_2CHW[row] - low) / np.maximum(high - low, 1e-12)
            axes = rows[2 * index + row]
            tiles(axes, list(scaled_CHW), [""] * len(scaled_CHW), columns=widest, cmap="viridis", vmin=0, vmax=1)
            axes.set_ylabel(what, fontsize=8)
            if row == 0:
                (short,) = drawable_names([layer.name], 60)
                axes.set_title(f"{short}, {height} x {width}{noise}", fontsize=8, loc="left")
    save(figure, path)
