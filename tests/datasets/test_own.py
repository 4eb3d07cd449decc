import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from bitsweep.data.given_images import look_through
from bitsweep.data.splits import make_splits
from bitsweep.datasets.own import OwnDataset
from bitsweep.errors import BitsweepError

CODE = """
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import Dataset, IterableDataset

    class Squares(Dataset):
        \"\"\"Grey images: each has its number everywhere.\"\"\"

        classes = ["even", "odd"]

        def __init__(self, kind, first, count, width=7):
            self.kind, self.first, self.count, self.width = kind, first, count, width

        def __len__(self):
            return self.count

        def __getitem__(self, number):
            value = self.first + number
            array = np.full((5, self.width), value, np.uint8)
            array[0, 0] = 200
            made = {
                "pillow": lambda: Image.fromarray(array),
                "array": lambda: array[..., None].repeat(3, 2),
                "flat": lambda: array,
                "bytes": lambda: torch.from_numpy(array)[None],
                "floats": lambda: (torch.from_numpy(array) / 255)[None],
                "deep": lambda: array.astype(np.uint16) * 16,
            }
            return made[self.kind](), torch.tensor(value % 2) if self.kind == "bytes" else value % 2

    def make(kind="pillow", width=7):
        return {"train": Squares(kind, 0, 12, width), "test": Squares(kind, 100, 6, width)}

    def both(kind="pillow"):
        return Squares(kind, 0, 12), Squares(kind, 100, 6)

    def one(kind="pillow"):
        return Squares(kind, 0, 12)

    def test_alone():
        return {"test": Squares("pillow", 0, 4)}

    def mixed():
        return [(Image.new("RGB", (9 + number, 9), (number, 90, 0)), "ab"[number % 2]) for number in range(8)]

    def given(item):
        return {"normalised": [(torch.randn(3, 4, 4), 0)], "labels": [(np.zeros((4, 4), np.uint8), [0, 1])],
                "alone": [np.zeros((4, 4), np.uint8)], "channels": [(np.zeros((4, 4, 2), np.uint8), 0)],
                "half": [(np.zeros((4, 4), np.uint8), 0.5)], "stream": iter([]), "nothing": [],
                "text": [("image.png", 0)], "parts": {"training": []}, "big": [(np.full((4, 4, 3), 256), 0)]}[item]

    def fails():
        raise RuntimeError("no such drive\\nat all")

    class Broken(Squares):
        def __getitem__(self, number):
            raise OSError("the drive is gone")

    class Streamed(IterableDataset):
        def __len__(self):
            return 4

        def __iter__(self):
            return iter(one())

    def streamed():
        return Streamed()

    def broken():
        return Broken("pillow", 0, 4)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A file of the user's, of a name that no other test imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / f"squares_{abs(hash(request.node.name))}.py"
    path.write_text(textwrap.dedent(CODE))
    return path


def own(file: Path, name: str, **knobs: Any) -> OwnDataset:
    return OwnDataset(name="own", factory=f"{file}:{name}", **knobs)


@pytest.mark.parametrize("kind", ["pillow", "array", "flat", "bytes", "floats", "deep"])
def test_images_of_every_kind_keep_their_size(kind: str, file: Path, tmp_path: Path) -> None:
    raw = own(file, "make", arguments={"kind": kind}).decode()
    assert (raw.classes, raw.train.labels.tolist()) == (("even", "odd"), [0, 1] * 6)
    assert raw.test.images.shape == (6, 5, 7, 3)
    pixels = raw.test.images[np.array([5, 0])]
    assert pixels[:, 2, 3].tolist() == [[105] * 3, [100] * 3]
    splits = make_splits(raw, val_share=0.25, seed=0, folder=tmp_path)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [9, 3, 6]


@pytest.mark.parametrize(("name", "counts"), [("both", (12, 6)), ("one", (9, 3)), ("test_alone", (0, 4))])
def test_parts(name: str, counts: tuple[int, int], file: Path) -> None:
    raw = own(file, name, test_share=0.25).decode()
    assert (len(raw.train), len(raw.test)) == counts


def test_images_of_several_sizes_become_squares(file: Path) -> None:
    raw = own(file, "mixed", test_share=0.25).decode()
    assert raw.train.images.shape == (6, 224, 224, 3)
    assert raw.classes == ("a", "b")
    assert own(file, "mixed", store_size=6, test_share=0.25).decode().test.images.shape == (2, 6, 6, 3)


def test_the_key_is_the_code_and_the_version(file: Path) -> None:
    first = own(file, "make").source()
    assert own(file, "make", version="2").source() == first  # a knob is in the key by itself
    file.write_text(file.read_text() + "\n# a remark\n")
    assert own(file, "make").source() == first
    file.write_text(file.read_text().replace("value % 2", "(value + 1) % 2"))
    assert own(file, "make").source() != first


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "given",
            {"item": "normalised"},
            "item 0 of all has pixels from .* must be from 0 to 1, before any",
        ),
        ("given", {"item": "labels"}, "item 0 of all has several labels; give one label an image"),
        ("given", {"item": "alone"}, "item 0 of all is a ndarray; it must be an image and its label"),
        (
            "given",
            {"item": "channels"},
            r"item 0 of all has an image ndarray \[4, 4, 2\]; it must be .* 1, 3 or 4",
        ),
        ("given", {"item": "half"}, "item 0 of all has the label 0.5; labels are names or whole numbers"),
        ("given", {"item": "big"}, "item 0 of all has pixels from 256 to 256; they must be from 0 to 255"),
        ("given", {"item": "text"}, r"item 0 of all has an image str \[\]; it must be a picture"),
        ("given", {"item": "stream"}, "all is a list_iterator; give a torch Dataset that has a length and numbers"),
        (
            "streamed",
            {},
            "all is a Streamed; give a torch Dataset that has a length and .* list of items",
        ),
        ("given", {"item": "nothing"}, "gives no images"),
        ("given", {"item": "parts"}, "gives training; it must give train and test, test alone, or one Dataset"),
        ("fails", {}, "RuntimeError: no such drive$"),
        ("broken", {}, "item 0 of all: OSError: the drive is gone"),
        ("nowhere", {}, "no such callable in squares_.*; it has "),
        ("make", {"colour": 1}, "TypeError: make.. got an unexpected keyword argument .colour."),
    ],
)
def test_what_gives_no_labelled_images_is_one_line(
    name: str, arguments: dict[str, Any], message: str, file: Path
) -> None:
    with pytest.raises(BitsweepError, match=rf"^dataset\.factory={file}:{name}: {message}") as caught:
        own(file, name, arguments=arguments).decode()
    assert "\n" not in str(caught.value)


def test_no_such_file_is_seen_while_planning(tmp_path: Path) -> None:
    with pytest.raises(BitsweepError, match=r"^dataset\.factory=.*nets.py:make: there is no file"):
        own(tmp_path / "nets.py", "make").source()
    with pytest.raises(BitsweepError, match=r"^dataset\.factory=make: write a file and a name in it"):
        OwnDataset(name="own", factory="make").source()


def test_pictures_that_are_shown_otherwise_are_no_copies() -> None:
    """Of equal codes, and by a palette, a transparent colour or an orientation of their own."""
    codes = np.arange(16, dtype=np.uint8).reshape(4, 4)
    pictures = [Image.fromarray(codes, "P") for _ in range(5)]
    pictures[1].putpalette([9, 8, 7] * 16)
    pictures[2].info["transparency"] = 3
    pictures[3].getexif()[ExifTags.Base.Orientation] = 6
    contents = look_through([(picture, 0) for picture in pictures], what="test").contents
    assert len(set(contents)) == 4
    assert contents[0] == contents[4]
