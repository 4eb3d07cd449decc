"""The classes of a network: their names in the order of its outputs, and the numbers that labels have among them.

Shape letters: N images, K classes.
"""

import json
import re
import unicodedata
from ast import literal_eval
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bitsweep.errors import DataError
from bitsweep.results import Array
from bitsweep.text import counted, say, some

#: A noun of WordNet's, by which ImageNet's classes are called; its words may follow.
_SYNSET = re.compile(r"(n\d{8})\b\s*(.*)", re.DOTALL)


def read_classes(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names of classes in their order: those that are given, or those in a file.

    The file is text with a name in every line, a list of them in JSON, or an object from numbers to names, as
    ``imagenet_class_index.json`` is, or from names to numbers, as torchvision's ``class_to_idx``; or a list or
    dictionary of Python. Names of several classes, as ``crane`` in lists of ImageNet's, are told apart by the numbers
    of these, and printed.

    Raises:
        DataError: there is no such file, or no names are in it.
    """
    if not isinstance(given, str):
        names, key = tuple(given), f"dataset.classes={list(given)}"
    elif not given:
        return ()
    else:
        file, key = Path(given).expanduser(), f"dataset.classes={given}"
        try:
            names = _names_in(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise DataError(f"{key}: no such file; name one with a class in every line, or give a list") from error
        except (OSError, ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{key}: cannot be read as names, one in every line or in JSON ({error})") from error
        if not names:
            raise DataError(f"{key}: holds no names; write one class in every line, in the order of the outputs")
    return _told_apart(names, key)


def number_labels(labels: Sequence[str | int], classes: Sequence[str]) -> tuple[Array, tuple[str, ...]]:
    """Labels from 0 on, int64 [N], and the names of the classes; what is unusual about them is printed.

    Args:
        labels: names, or whole numbers, which may start anywhere and have gaps.
        classes: names in the order of the network's outputs, where labels need not have all of them: a number counts
            there from 0, or from 1 where the first is 1 and the last as many as there are. None: the labels are the
            classes, in alphabetical or numerical order.

    Raises:
        DataError: a label is none of the classes.
    """
    found = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    for line in look_alikes(classes or map(str, found)):
        say(line)
    if classes:
        places = _places(found, classes)
        return np.array([places[label] for label in labels], np.int64), tuple(classes)
    if found and all(isinstance(label, int) for label in found):
        low, high = int(found[0]), int(found[-1])
        if low < 0:
            raise DataError(f"labels run from {low} to {high}; they must not be negative")
        if len(found) != high + 1:
            say(f"labels run from {low} to {high} with {len(found)} values: those are the classes")
    places = {label: number for number, label in enumerate(found)}
    return np.array([places[label] for label in labels], np.int64), tuple(str(label) for label in found)


def look_alikes(names: Iterable[str]) -> list[str]:
    """A line for every name that differs from another in case, spaces, invisible characters or encoding alone."""
    lines = []
    spellings: dict[str, str] = {}
    for name in names:
        visible = (each for each in unicodedata.normalize("NFKC", name) if unicodedata.category(each) != "Cf")
        other = spellings.setdefault(" ".join("".join(visible).casefold().split()), name)
        if other != name:
            lines.append(f"warning: the classes {other!a} and {name!a} look alike, and are two")
    return lines


def whole_numbers(labels: Sequence[str]) -> Sequence[str | int]:
    """Labels as numbers, where all of them are whole numbers as they stand in a table; as they are otherwise."""
    if labels and all(re.fullmatch(r"[+-]?[0-9]+(\.0*)?", label) for label in labels):
        return [int(label.partition(".")[0]) for label in labels]
    return labels


def _places(found: Sequence[str | int], classes: Sequence[str]) -> dict[str | int, int]:
    """The number of every label among the classes."""
    synsets = [
        (match[1], match[2], number) for number, name in enumerate(classes) if (match := _SYNSET.fullmatch(name))
    ]
    called = Counter(words for _, words, _ in synsets)
    known = {words: number for _, words, number in synsets if called[words] == 1}
    known |= {synset: number for synset, _, number in synsets}
    known |= {name: number for number, name in enumerate(classes)}
    strange = [label for label in found if str(label) not in known]
    if not strange:
        return {label: known[str(label)] for label in found}
    numbers = whole_numbers([str(label) for label in found])
    if not all(isinstance(number, int) for number in numbers):
        alone = f"not {classes[0]}, the only one of dataset.classes"
        reason = f"none of the {len(classes)} dataset.classes" if classes[1:] else alone
        raise DataError(f"{some(map(str, strange))} {'are' if strange[1:] else 'is'} {reason}")
    low, high = int(min(numbers)), int(max(numbers))
    first = int(low == 1 and high == len(classes))
    if low < first or high >= len(classes) + first:
        raise DataError(f"labels run from {low} to {high}, but dataset.classes has {counted(len(classes), 'name')}")
    if first:
        say(f"labels count from 1: 1 is {classes[0]}")
    return {label: int(number) - first for label, number in zip(found, numbers, strict=True)}


def _told_apart(names: tuple[str, ...], key: str) -> tuple[str, ...]:
    """Names of which none is that of several classes: theirs get the number of the class."""
    several = {name for name, count in Counter(names).items() if count > 1}
    apart = tuple(f"{name} ({number})" if name in several else name for number, name in enumerate(names))
    if again := [name for name, count in Counter(apart).items() if count > 1]:
        raise DataError(f"{key}: {again[0]} is there twice; give every class a name of its own")
    if several:
        renamed = [new for old, new in zip(names, apart, strict=True) if old in several]
        say(f"{key}: several classes have one name, and are called {some(renamed)}")
    return apart


def _names_in(text: str) -> tuple[str, ...]:
    if not text.lstrip().startswith(("[", "{")):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        content = json.loads(text)
    except ValueError:
        content = literal_eval(text.lstrip())
    if isinstance(content, dict):
        if content and all(type(number) is int for number in content.values()):
            content = {number: name for name, number in content.items()}
        content = {str(key): name for key, name in content.items()}
        numbers = sorted(map(int, content))
        if numbers != list(range(len(numbers))):
            raise ValueError("its keys are not the numbers from 0 on")
        content = [content[str(number)] for number in numbers]
    names = [" ".join(map(str, name)) if isinstance(name, list) else name for name in content]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("it holds other things than names")
    return tuple(names)
