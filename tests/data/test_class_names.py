import json
from pathlib import Path

import pytest

from bitsweep.data.class_names import number_labels, read_classes, whole_numbers
from bitsweep.errors import DataError


@pytest.mark.parametrize(
    "text",
    [
        "tench\ngoldfish\nwhite shark",
        "\ufefftench \r\n\r\ngoldfish\r\nwhite shark\r\n",
        json.dumps(["tench", "goldfish", "white shark"]),
        json.dumps({"1": "goldfish", "2": "white shark", "0": "tench"}),
        json.dumps({"goldfish": 1, "white shark": 2, "tench": 0}),
        "{0: 'tench',\n 1: 'goldfish',\n 2: \"white shark\"}",
    ],
)
def test_names_in_a_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(text)
    assert read_classes(str(tmp_path / "names")) == ("tench", "goldfish", "white shark")
    assert read_classes(["a", "b"]) == ("a", "b")
    assert read_classes("") == read_classes(()) == ()


def test_the_index_of_imagenet(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}))
    classes = read_classes(str(tmp_path / "index.json"))
    assert classes == ("n01440764 tench", "n01443537 goldfish")
    assert number_labels(["n01443537", "n01440764", "n01443537"], classes)[0].tolist() == [1, 0, 1]
    assert number_labels(["tench", "goldfish"], classes)[0].tolist() == [0, 1]


def test_names_of_several_classes_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``crane``, the bird and the machine, in lists of ImageNet's classes."""
    (tmp_path / "names").write_text("tench\ncrane\nplane\ncrane\n")
    classes = read_classes(str(tmp_path / "names"))
    assert classes == ("tench", "crane (1)", "plane", "crane (3)")
    assert "several classes have one name, and are called crane (1), crane (3)" in capsys.readouterr().out
    assert number_labels(["plane", "crane (3)"], classes)[0].tolist() == [2, 3]
    with pytest.raises(DataError, match=r"^crane is none of the 4 dataset.classes"):
        number_labels(["crane"], classes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; name one with a class in every line"),
        (b"", "holds no names; write one class in every line"),
        (b"a\na\na (0)\n", r"a \(0\) is there twice"),
        (b'{"a": 0, "b": 2}', "keys are not the numbers from 0 on"),
        (b"{0: open('x')}", "cannot be read as names"),
        (b"\xff\xfe\x00", "cannot be read as names"),
        (b"[1, 2]", "cannot be read as names, .* other things than names"),
        (b'{"1": "a"}', "keys are not the numbers from 0 on"),
        (b"{broken", "cannot be read as names"),
    ],
)
def test_files_without_names(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "names").write_bytes(content)
    with pytest.raises(DataError, match=f"^dataset.classes={tmp_path}/names: .*{message}") as caught:
        read_classes(str(tmp_path / "names"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers", "names"),
    [
        (["b", "a", "b"], (), [1, 0, 1], ("a", "b")),
        (["10", "9"], (), [0, 1], ("10", "9")),  # of folders, in the order that everybody has them
        ([10, 9], (), [1, 0], ("9", "10")),
        ([5, 7, 5], (), [0, 1, 0], ("5", "7")),
        ([1, 2], ("x", "y"), [0, 1], ("x", "y")),
        ([1, 0], ("x", "y"), [1, 0], ("x", "y")),
        ([1], ("x", "y"), [1], ("x", "y")),
        (["1", "2"], ("2", "1"), [1, 0], ("2", "1")),
        (["007", "1"], tuple("abcdefgh"), [7, 1], tuple("abcdefgh")),
        (["tiger"], ("tiger shark", "tiger"), [1], ("tiger shark", "tiger")),
    ],
)
def test_numbers_of_labels(
    labels: list[str | int], classes: tuple[str, ...], numbers: list[int], names: tuple[str, ...]
) -> None:
    found, called = number_labels(labels, classes)
    assert (found.tolist(), called) == (numbers, names)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["a", "c", "d"], ("a", "b"), "c, d are none of the 2 dataset.classes"),
        (["a", "c"], ("a",), "c is not a, the only one of dataset.classes"),
        (["tiger"], ("tiger shark", "lion"), "tiger is none of the 2 dataset.classes"),
        ([0, 2], ("a", "b"), "labels run from 0 to 2, but dataset.classes has 2 names"),
        ([-1, 2], (), "labels run from -1 to 2; they must not be negative"),
    ],
)
def test_labels_that_are_no_classes(labels: list[str | int], classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        number_labels(labels, classes)


@pytest.mark.parametrize(
    "pair", [("cat", "Cat"), ("cat", "cat "), ("a  b", "a b"), ("caf\u00e9", "cafe\u0301"), ("cat", "cat\u200b")]
)
def test_classes_that_look_alike_are_told(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for classes in ((), pair):
        assert len(number_labels([*pair], classes)[1]) == 2
        assert "look alike, and are two" in capsys.readouterr().out
    number_labels(["cat", "cats"], ())
    assert not capsys.readouterr().out


def test_words_that_are_numbers() -> None:
    assert whole_numbers(["1", "02", "3.0"]) == [1, 2, 3]
    assert whole_numbers(["1", "b"]) == ["1", "b"]
    assert whole_numbers(["1.5"]) == ["1.5"]
