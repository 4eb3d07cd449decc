import os
import shutil
from pathlib import Path

import pytest

from bitsweep.data import image_tree
from bitsweep.data.image_tree import content_digests, find_classes, find_parts
from bitsweep.errors import DataError


def put(root: Path, *names: str) -> Path:
    """Files whose content is their name; only folders where a name ends in a slash."""
    for name in names:
        file = root / name
        if name.endswith("/"):
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
    return root


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("train", "val"), ("train", "val")),
        (("train", "test"), ("train", "test")),
        (("training_set", "test_set"), ("training_set", "test_set")),
        (("Train", "Validation", "pictures"), ("Train", "Validation")),
        (("cats", "dogs"), ()),
    ],
)
def test_parts_are_found_by_their_usual_names(tmp_path: Path, folders: tuple[str, ...], parts: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{folder}/a/1.jpg" for folder in folders), "README.txt", ".git/config/x")
    assert find_parts(tmp_path) == parts


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert find_parts(put(tmp_path, "bus/1.jpg", "train/2.jpg")) == ()


def test_parts_can_be_named(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "test/a/1.jpg", "more/a/1.jpg")
    assert find_parts(tmp_path, test="val") == ("train", "val")
    assert find_parts(tmp_path, train="more", test="val") == ("more", "val")


@pytest.mark.parametrize(
    ("folders", "knobs", "message"),
    [
        (("train", "val", "test"), {}, r"has test and val; choose one with dataset.test_folder=test$"),
        (("train", "others"), {}, r"has train, and no other folder .* set dataset.root=.*/train to split that$"),
        (("train", "test"), {"test": "tset"}, r"dataset.test_folder=tset: no such folder .* choose from test, train$"),
    ],
)  # fmt: skip
def test_parts_that_are_missing_or_many(
    tmp_path: Path, folders: tuple[str, ...], knobs: dict[str, str], message: str
) -> None:
    put(tmp_path, *(f"{folder}/a/1.jpg" for folder in folders))
    with pytest.raises(DataError, match=message):
        find_parts(tmp_path, **knobs)


def test_classes_and_files_are_in_order_and_litter_is_none(tmp_path: Path) -> None:
    put(
        tmp_path,
        "dogs/2.jpg",
        "cats/9.png",
        "cats/10.png",
        "cats/.DS_Store",
        "cats/_DS_Store",
        "dogs/Thumbs.db",
        "a.txt",
    )
    assert find_classes(tmp_path) == {"cats": ["cats/10.png", "cats/9.png"], "dogs": ["dogs/2.jpg"]}


def test_litter_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    litter = ("cats/Thumbs.db", "cats/Desktop.ini", "cats/@eaDir/1.jpg", "__MACOSX/cats/1.jpg", "dogs/THUMBS.DB")
    put(tmp_path, "cats/1.jpg", "dogs/2.jpg", *litter)
    assert find_classes(tmp_path) == {"cats": ["cats/1.jpg"], "dogs": ["dogs/2.jpg"]}
    said = capsys.readouterr().out
    assert (
        said == f"left out below {tmp_path}: @eaDir, Desktop.ini, THUMBS.DB and 2 more, which are no images of yours\n"
    )


def test_a_folder_that_is_left_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "test/a/1.jpg")
    assert find_parts(tmp_path, test="test") == ("train", "test")
    assert capsys.readouterr().out == f"left out: val in {tmp_path}; validation images are held out from train\n"


@pytest.mark.timeout(60)
def test_a_pipe_among_the_images_is_named(tmp_path: Path) -> None:
    put(tmp_path, "cats/1.jpg", "dogs/2.jpg")
    os.mkfifo(tmp_path / "cats/2.jpg")
    with pytest.raises(DataError, match=r"/cats holds 2\.jpg, which is a pipe and no file; delete it$"):
        find_classes(tmp_path)


@pytest.mark.parametrize("part", ["", "training_set"])
def test_a_folder_that_is_alone_is_entered(tmp_path: Path, part: str) -> None:
    put(tmp_path / part, "inner/inner/cats/1.jpg", "inner/inner/dogs/1.jpg")
    below = f"{part}/inner/inner".lstrip("/")
    assert find_classes(tmp_path, part) == {name: [f"{below}/{name}/1.jpg"] for name in ("cats", "dogs")}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"holds 0 folders; there must be two or more.* set dataset.root"),
        (("cats/1.jpg",), r"holds 1 folder;"),
        (("cats/1.jpg", "dogs/"), r"/dogs is empty; put the images .* or delete it$"),
        (("cats/1.jpg", "dogs/.hidden"), r"/dogs is empty"),
        (("cats/1.jpg", "dogs/1.jpg", "3.JPG"), r"holds images beside its folders \(3.JPG\); put each into"),
        (("cats/1.jpg", "dogs/1.jpg", "dogs/big/2.jpg"), r"/dogs holds folders \(big\).* set dataset.root"),
    ],
)
def test_what_is_no_folder_of_classes(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_classes(put(tmp_path, *names))


def test_digests_are_of_the_contents(tmp_path: Path) -> None:
    import hashlib

    names = [f"{number}.jpg" for number in range(200)]
    put(tmp_path, *names)
    assert content_digests(tmp_path, names) == [hashlib.sha256(name.encode()).digest() for name in names]


def test_digests_that_took_long_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = put(tmp_path / "root", "a", "b"), tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    first = content_digests(root, ["a", "b"])
    assert not cache.exists()
    monkeypatch.setattr(image_tree, "_LONG_S", -1.0)
    assert content_digests(root, ["a", "b"]) == first
    (kept,) = (cache / "bitsweep").iterdir()

    with monkeypatch.context() as patched:
        patched.setattr(image_tree, "_digests", lambda root, names: pytest.fail("hashed again"))
        assert content_digests(root, ["a", "b"]) == first

    # Same size and same time of modification, as a careful copy has them.
    before = (root / "a").stat()
    (root / "a").write_text("c")
    os.utime(root / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = content_digests(root, ["a", "b"])
    assert changed[0] != first[0]
    assert changed[1] == first[1]

    kept.write_bytes(b"half")
    shutil.copytree(root, tmp_path / "copy")
    assert content_digests(tmp_path / "copy", ["a", "b"]) == changed


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a", "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image_tree, "_LONG_S", -1.0)
    assert len(content_digests(tmp_path, ["a"])) == 1
