"""Odd names, made fit to be shown."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bitsweep
from bitsweep.text import counted, plain, say, shortened, some


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cats & dogs", "cats & dogs"),
        ("two\nlines\tand\u2028more", "two lines and more"),
        ("\x1b[31mred\x1b[0m\a", "\\x1b[31mred\\x1b[0m\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("caf\u00e9 \u732b \u05d7\u05ea\u05d5\u05dc \U0001f408\u200d\u2b1b", None),
        ("a file \udcff", "a file \\udcff"),
    ],
)  # fmt: skip
def test_what_acts_is_escaped(text: str, shown: str | None) -> None:
    assert plain(text) == (text if shown is None else shown)


@given(st.text(alphabet=st.characters(codec=None, exclude_categories=())))
def test_whatever_it_is(text: str) -> None:
    shown = plain(text)
    assert shown.replace("\u200c", "").replace("\u200d", "").isprintable()
    shown.encode()


@given(st.text(), st.integers(3, 40))
def test_long_names_lose_their_middle(text: str, most: int) -> None:
    short = shortened(text, most)
    assert len(short) <= most
    assert short == text or (short[0] == text[0] and short[-1] == text[-1])


def test_some_of_many() -> None:
    assert some("ab") == "a, b"
    assert some("abcde") == "a, b, c and 2 more"


def test_one_is_told_in_the_singular() -> None:
    assert [counted(number, "cell") for number in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]


def test_names_that_are_told_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("left out: a\x1b[31mred", "two\nlines")
    assert capsys.readouterr().out == "left out: a\\x1b[31mred\ntwo lines\n"


def test_what_reads_data_tells_names_in_no_other_way() -> None:
    """`print` would hand a terminal whatever is in the name of a file, a column or a layer."""
    source = Path(bitsweep.__file__).parent
    files = [file for part in ("data", "datasets", "models", "training") for file in (source / part).glob("*.py")]
    assert len(files) > 40
    printing = [file.name for file in files if re.search(r"\bprint\(", file.read_text())]
    assert printing == ["checkpoint.py"]  # of a file of the store
