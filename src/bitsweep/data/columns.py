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
#: The largest number that counts as one; differences of larger ones need not be finite.
_LARGEST = 1e300
#: Numbers with decimal commas, separated thousands, a sign of percent, of a currency or of its own, a unit, or quotes.
_SPELT = re.compile(
    r"=?[('\"\[]*[+\-\u2212]?\s?([$€£¥]|EUR|USD|GBP|CHF|JPY|CNY|INR|Rs\.?)?\s?[+\-\u2212]?"
    r"(\d+([.,]\d+)?|\d{1,3}([,.'_\u2019\s]\d{3})+([.,]\d+)?|\d+[.,]\d+[a-zA-Z])([dDeE][+-]?\d+)?"
    r"(\s?[%‰°$€£¥]|\s[a-zA-Zµ°/%]{1,5}|[a-zA-Zµ°/%]{2,5})?[)'\"\]]*"
)
#: Part of a column of numbers from which on those in another spelling are too many to count as missing.
_MANY_SPELT = 0.05
#: Characters of a cell that messages show.
_LONGEST = 40

#: ``truths`` are numbers 1 and 0 that are written as ``true`` and ``false``, in any case of letters.
Kind = Literal["numbers", "truths", "words"]


def kind_of(column: "pandas.Series") -> Kind:
    """What a column of text holds, by more than half of its cells that are not missing, or of what is in them."""
    there = column[~column.str.lower().isin(_MISSING)]
    if len(there) and there.str.lower().isin(_TRUTHS).all():
        return "truths"
    number = np.isfinite(_numbers(there, "numbers"))
    mostly = number.sum() > 0.5 * len(there)
    if not mostly and number.any():  # "?" in most cells, and a number of its own in each of the others
        different, numbers = there.nunique(), there[number].nunique()
        mostly = different > _MANY_WORDS and numbers > 0.5 * different
    return "numbers" if mostly else "words"


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
    """Numbers that are not written as programs write them, where they are too many to count as missing.

    Where they are a few choices only, they are words.
    """
    if kind == "truths" or cells.nunique() <= _MANY_WORDS:
        return []
    spelt = cells[cells.str.fullmatch(_SPELT.pattern)]
    odd = spelt[np.isnan(_numbers(spelt, "numbers"))]
    several = len(spelt) > 0.5 * len(cells) if kind == "words" else len(odd) > _MANY_SPELT * len(cells)
    return list(odd.unique()) if len(odd) and several else []


def merged_classes(column: "pandas.Series", names: "pandas.Series") -> list[str]:
    """The cells of a class that is written in several ways, as ``1`` and ``01``; none if there is no such class."""
    written = column.drop_duplicates()
    ways = written.groupby(names[written.index]).agg(list)
    return next((way for way in ways if len(way) > 1), [])


def giveaways(frame: "pandas.DataFrame", classes: "pandas.Series") -> list[str]:
    """Columns that alone tell the class of every row, and not because each row has a value of its own."""
    counts = {name: frame[name].nunique() for name in frame.columns}
    few = [name for name, count in counts.items() if classes.nunique() <= count <= len(frame) / 10]
    return [name for name in few if len(frame[[name]].assign(classes=classes).drop_duplicates()) == counts[name]]


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
        self._ranges = {name: (np.nanmin(values), np.nanmax(values)) for name, values in numbers.items()}
        self._alone = {name: alone for name, values in numbers.items() if (alone := _far_from_others(values))}

    @property
    def features(self) -> int:
        """F."""
        return len(self._medians) + sum(map(len, self._words.values()))

    def messages(self, test: "pandas.DataFrame") -> list[str]:
        """Which columns become switches, and how many; what looks like a code, and what test rows alone hold."""
        lines = [
            f"{name} is {code:g} in {count} rows, far from {low:g} to {high:g} in others: if that means that it is "
            "missing, leave these cells empty"
            for name, (code, count, low, high) in self._alone.items()
        ]
        for name, (low, high) in self._ranges.items():
            values = _numbers(test[name], self._kinds[name])
            outside = int(((values < low) | (values > high)).sum())
            if low < high and outside > 0.5 * len(test):
                lines.append(
                    f"warning: {name} of {outside} of {len(test)} test rows is not between {low:g} and {high:g}, as in "
                    "training rows: is it in one unit, and no number of the row?"
                )
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
            with np.errstate(over="ignore"):  # beyond a column of one number alone
                features.append(255 * np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1))
        codes: Array = np.rint(np.stack(features, axis=1)).astype(np.uint8)
        return codes


def _numbers(column: "pandas.Series", kind: Kind) -> Array:
    """The numbers in a column of text, float64 [N]; not a number where there is none up to `_LARGEST`."""
    import pandas

    if kind == "truths":
        return np.asarray(column.str.lower().map(_TRUTHS), np.float64)
    values = np.array(pandas.to_numeric(column, errors="coerce"), np.float64)
    values[~(np.abs(values) <= _LARGEST)] = np.nan
    return values


def _far_from_others(values: Array) -> tuple[float, int, float, float] | None:
    """A smallest or largest number as far from all others as no two of them are, as -999 is, if several rows have it.

    Returns:
        It, in how many rows, and between which numbers the others are.
    """
    there = values[~np.isnan(values)]
    for code in (there.min(), there.max()):
        others = there[there != code]
        if len(others) >= len(there) - 1 or np.unique(others).size < 3:
            continue
        low, high = others.min(), others.max()
        if np.abs(others - code).min() > high - low:
            return float(code), len(there) - len(others), float(low), float(high)
    return None


def _spelt(cell: str) -> str:
    """A number in the shortest spelling; empty where it is none."""
    import pandas

    value = float(pandas.to_numeric(cell, errors="coerce"))
    if not np.isfinite(value):
        return ""
    if re.fullmatch(r"[+-]?[0-9]+", cell):
        return str(int(cell))
    return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)
