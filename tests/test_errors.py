import pickle

import pytest

from bitsweep import errors
from bitsweep.errors import BitsweepError, MissingPackage, first_line


def _classes(kind: type[BitsweepError]) -> list[type[BitsweepError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _classes(child))]


@pytest.mark.parametrize("kind", _classes(BitsweepError), ids=lambda kind: kind.__name__)
def test_every_error_crosses_to_another_process_as_it_is(kind: type[BitsweepError]) -> None:
    error = kind(*(["timm", "timm"] if kind is MissingPackage else ["a: b\nc"]))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code


def test_the_tree_names_every_error() -> None:
    assert errors.__doc__
    for kind in _classes(BitsweepError):
        if kind.__module__ == errors.__name__:
            assert kind.__name__ in errors.__doc__


def test_a_missing_package_is_named_as_pip_takes_it() -> None:
    assert str(MissingPackage("timm", "timm")) == "timm is not installed; run: pip install 'bitsweep[timm]'"
    assert str(MissingPackage("torch", "")) == "torch is not installed; run: pip install torch"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("", "ValueError"),
        ("\nno such layer\nin a net", "no such layer"),
        ("found invalid values:\ntensor([-1.])\nmore", "found invalid values: tensor([-1.])"),
        ("nothing follows:", "nothing follows:"),
    ],
)
def test_the_first_line_of_somebody_elses_error(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line
