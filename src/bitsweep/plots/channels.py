"""What the channels of the tensors and layers look like whose rounding costs most."""

import statistics
from pathlib import Path
from typing import Any

from bitsweep.plots.figures import drawable, label, number_logarithmic, panels, save
from bitsweep.results import Table

#: Name of the table of channels.
TABLE = "channels"
#: Channels beyond this many medians are marked, and the largest of them is named.
OUTLIER = 4.0
_COLUMNS = 3
_WIDEST = 40


def draw_channels(table: Table, path: Path) -> None:
    """Draw the channels of each tensor on a logarithmic axis, with their median and those far above it.

    Args:
        table: with a row for each channel: its tensor, when it was looked at, what the value is, the channel, and the
            value.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for what, when, shown, _, value in table.rows:
        found.setdefault((str(what), str(when), str(shown)), []).append(float(value))
    columns = min(_COLUMNS, len(found))
    figure, axes = panels(
        "channels of what costs most", rows=-(-len(found) // columns), columns=columns, width=3.4, height=2.2, top=0.5
    )
    for panel, ((what, when, shown), values) in zip(axes, found.items(), strict=False):
        _draw_tensor(panel, values)
        label(panel, f"{drawable(what, _WIDEST)}\n{drawable(when, _WIDEST)}", "channel", shown)
    for panel in axes[len(found) :]:
        panel.set_axis_off()
    save(figure, path)


def _draw_tensor(panel: Any, values: list[float]) -> None:
    """The values of one tensor's channels."""
    median = statistics.median(values)
    shown = {channel: value for channel, value in enumerate(values) if value > 0}
    far = [
        channel for channel in sorted(shown, key=lambda channel: -shown[channel]) if shown[channel] > OUTLIER * median
    ]
    if shown:
        low, high = min(shown.values()) / 1.5, max(shown.values()) * 3
        panel.set_yscale("log")
        panel.set_ylim(low, high)
        number_logarithmic(panel.yaxis, high / low)
    for channels, colour, size in ((shown.keys() - set(far), "C0", 10), (far, "C3", 16)):
        panel.scatter(list(channels), [shown[channel] for channel in channels], s=size, color=colour)
    panel.axhline(median, color="0.4", linewidth=1, linestyle="--")
    panel.text(
        0.99, median, f"median {median:.3g}", transform=panel.get_yaxis_transform(), ha="right", va="bottom",
        fontsize=7, bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
    )  # fmt: skip
    for channel in far[:1]:
        side, across = ("left", 4) if channel < len(values) / 2 else ("right", -4)
        panel.annotate(
            f"channel {channel}: {shown[channel]:.3g}", (channel, shown[channel]), xytext=(across, 4),
            textcoords="offset points", fontsize=7, color="C3", ha=side,
        )  # fmt: skip
    margin = 0.5 + 0.02 * len(values)
    panel.set_xlim(-margin, len(values) - 1 + margin)
