"""Figures as they were drawn, to be asked what they show."""

from pathlib import Path
from typing import Any

import pytest

from bitsweep.plots import channels, classification, figures, layers, records, speed, training


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is written while a test runs; each must be a PNG of at least 400 pixels."""
    found: list[Any] = []

    def save(figure: Any, path: Path) -> None:
        figures.save(figure, path)
        png = path.read_bytes()
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20]) >= 400
        found.append(figure)

    for module in (channels, classification, layers, records, speed, training):
        monkeypatch.setattr(module, "save", save)
    return found
