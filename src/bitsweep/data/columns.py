"""From columns of text to features: numbers are spread over a byte, words become switches.

Shape letters: N rows, F features.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from bitsweep.results import Array
from bitsweep.text import shortened

if TYPE_CHECKING:
    import pandas

#: Percentiles of the training rows between which a column of numbers is spread over a byte.
LOW, HIGH = 1, 99
#: Cells, in lower case, that say by themselves that a number is missing.
_MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "nil"})
_TRUTHS = {"true": 1.0, "false": 0.0}
#: Numbers below this are whole when their float is.
_EXACT = 1 << 53
#: Words of a column above which they may be names of rows.
_MANY_WORDS = 50
#: Numbers with decimal commas, separated thousands, a sign of percent, of a currency or of its own, or a unit.
_SPELT = re.compile(
    r"[+\-\u2212]?\s?[$€£¥]?\s?[+\-\u2212]?(\d+([.,]\d+)?|\d{1,3}([,.'_\u2019\s]\d{3})+([.,]\d+)?)"
    r"(\s?[%‰°$€£¥]|\s[a-zA-Zµ°/%]{1,5})?"
)
#: Characters of a cell that messages show.
_LONGEST = 40

#: ``truths`` are numbers 1 and 0 that are written as ``true`` and ``false``, in any case of letters.
Kind = Literal["numbers", "truths", "words"]


def kind_of(column: "pandas.Series") -> Kind:
    """What a column of text holds, by more than half of its cells that are not missing."""
    there = column[~column.str.lower().isin(_MISSING)]
    if len(there) and there.str.lower().isin(_TRUTHS).all():
        return "truths"
    return "numbers" if np.isfinite(_numbers(there, "numbers")).sum() > 0.5 * len(there) else "words"


def named_classes(column: "pandas.Series", kind: Kind) -> "pandas.Series":
    """Names of classes: words as they are; numbers in one spelling each, and empty where there is none."""
    if kind != "numbers":
        return column
    return column.map({cell: _spelt(cell) for cell in column.unique()})


def present(cells: "pandas.Series", kind: Kind) -> Array:
    """Which cells of a column hold what its kind wants, bool [N]."""
    there: Array = np.asarray(cells != "") if kind == "words" else ~np.isnan(_numbers(cells, kind))
    return there


def messages_about_cells(cells: "pandas.Series", kind: Kind) -> list[str]:
    """How many cells of a column are missing, and which stand among numbers without being one."""
    messages = []
    missing = cells == "" if kind == "words" else cells.str.lower().isin(_MISSING)
    if missing.any():
        messages.append(f"{missing.sum()} of {len(cells)} rows have no {cells.name}")
    odd = cells[~missing & ~present(cells, kind)]
    if len(odd):
        what = f"{len(odd)} of {len(cells)} cells of {cells.name} are no numbers ({some_of(odd.unique())})"
        messages.append(f"{what}: they count as missing")
    return messages


def number_spellings(cells: "pandas.Series", kind: Kind) -> list[str]:
    """Numbers that are not written as programs write them, where most cells are such, and not a few choices of them."""
    if kind != "words" or cells.nunique() <= _MANY_WORDS:
        return []
    spelt = cells[cells.str.fullmatch(_SPELT.pattern)]
    odd = spelt[np.isnan(_numbers(spelt, "numbers"))]
    return list(odd.unique()) if len(odd) and len(spelt) > 0.5 * len(cells) else []


def as_numbers(cells: "pandas.Series", kind: Kind) -> "pandas.Series":
    """The cells of a column with each of its numbers in one spelling."""
    if kind == "words":
        return cells
    values = _numbers(cells, kind)
    return cells.where(np.isnan(values), [repr(float(value)) for value in values])


def some_of(cells: "Array | list[str]") -> str:
    """The first few of them, as they are written in programs."""
    return ", ".join(shortened(ascii(cell), _LONGEST) for cell in cells[:3]) + (", ..." if len(cells) > 3 else "")


class Encoder:
    """From rows to features, by what the training rows hold.

    A column of numbers is one feature, spread over 0 to 255 between its 1st and 99th percentile and clipped beyond; a
    missing one takes the median. A column of words is one feature, 0 or 255, for each word; a missing one is a word of
    its own, and one that no training row has is none of them.
    """

    def __init__(self, train: "pandas.DataFrame", kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds
        self._words = {name: sorted(train[name].unique()) for name, kind in kinds.items() if kind == "words"}
        numbers = {name: _numbers(train[name], kind) for name, kind in kinds.items() if kind != "words"}
        self._medians = {name: np.nanmedian(values) for name, values in numbers.items()}
        self._bounds = {name: np.nanpercentile(values, [LOW, HIGH]) for name, values in numbers.items()}

    @property
    def features(self) -> int:
        """F."""
        return len(self._medians) + sum(map(len, self._words.values()))

    def messages(self, test: "pandas.DataFrame") -> list[str]:
        """Which columns become switches, how many, and in how many test rows none of them is on."""
        lines = []
        for name, words in self._words.items():
            hint = f"; if it only names rows: dataset.drop=[{name}]" if len(words) > _MANY_WORDS else ""
            lines.append(f"{name} is a column of words: {len(words)} features, one for each ({some_of(words)}){hint}")
            unseen = test[name][~test[name].isin(words)]
            if len(unseen):
                lines.append(
                    f"{len(unseen)} of {len(test)} test rows have words in {name} that no training row has "
                    f"({some_of(unseen.unique())})"
                )
        return lines

    def __call__(self, frame: "pandas.DataFrame") -> Array:
        """Features of rows, uint8 [N, F]."""
        features: list[Array] = []
        for name, kind in self._kinds.items():
            if kind == "words":
                features += [np.where(frame[name] == word, 255.0, 0.0) for word in self._words[name]]
                continue
            low, high = self._bounds[name]
            values = _numbers(frame[name], kind)
            values = np.where(np.isnan(values), self._medians[name], values)
            features.append(255 * np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1))
        codes: Array = np.rint(np.stack(features, axis=1)).astype(np.uint8)
        return codes


def _numbers(column: "pandas.Series", kind: Kind) -> Array:
    """The numbers in a column of text, float64 [N]; not a number where there is no finite one."""
    import pandas

    if kind == "truths":
        return np.asarray(column.str.lower().map(_TRUTHS), np.float64)
    values = np.array(pandas.to_numeric(column, errors="coerce"), np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _spelt(cell: str) -> str:
    """A number in the shortest spelling; empty where it is none."""
    import pandas

    value = float(pandas.to_numeric(cell, errors="coerce"))
    if not np.isfinite(value):
        return ""
    if re.fullmatch(r"[+-]?[0-9]+", cell):
        return str(int(cell))
    return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)
