import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitsweep.data import splits
from bitsweep.data.pixels import StoredForm, read_picture
from bitsweep.data.splits import load_splits, make_splits
from bitsweep.datasets.image_folder import ImageFolder
from bitsweep.errors import DataError
from bitsweep.results import RawData
from tests.data.test_pixels import deep_colours

CLASSES = ("ants", "bees")


def put(root: Path, names: list[str]) -> Path:
    """Images of one colour each: its red is its number in the list, its blue that of its class."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (number, number % 2, CLASSES.index(Path(name).parent.name))).save(root / name)
    return root


def parts(train: int = 4, test: int = 2) -> list[str]:
    counts = {"train": train, "val": test}
    return [f"{part}/{kind}/{i}.png" for part, count in counts.items() for kind in CLASSES for i in range(count)]


def together(count: int) -> list[str]:
    return [f"{kind}/{i}.png" for kind in CLASSES for i in range(count)]


def dataset(root: Path, **knobs: object) -> ImageFolder:
    return ImageFolder(**{"name": "small", "root": str(root), "store_size": 5, **knobs})  # type: ignore[arg-type]


def red(raw: RawData, part: str) -> set[int]:
    split = getattr(raw, part)
    images = split.images[np.arange(len(split))]
    assert images[:, 0, 0, 2].tolist() == split.labels.tolist()
    return set(images[:, 0, 0, 0].tolist())


def test_a_tree_with_parts(tmp_path: Path) -> None:
    raw = dataset(put(tmp_path, parts())).decode()
    assert raw.train.images.shape == (8, 5, 5, 3)
    assert raw.classes == CLASSES
    assert (red(raw, "train"), red(raw, "test")) == (set(range(8)), set(range(8, 12)))


def test_a_tree_of_classes_is_split(tmp_path: Path) -> None:
    put(tmp_path, together(20))
    raw = dataset(tmp_path, test_share=0.25).decode()
    assert np.bincount(raw.train.labels).tolist() == [15, 15]
    assert red(raw, "train") | red(raw, "test") == set(range(40))
    assert not red(raw, "train") & red(raw, "test")
    assert red(dataset(tmp_path, test_share=0.25).decode(), "test") == red(raw, "test")
    assert red(dataset(tmp_path, test_share=0.25, split_seed=1).decode(), "test") != red(raw, "test")


def test_equal_files_are_on_the_same_side(tmp_path: Path) -> None:
    put(tmp_path, together(12))
    for kind in CLASSES:
        for number in range(12):
            shutil.copy(tmp_path / kind / f"{number}.png", tmp_path / kind / f"{number} copy.png")
    raw = dataset(tmp_path, test_share=0.5).decode()
    assert len(raw.test) == 24
    assert not red(raw, "train") & red(raw, "test")


def test_the_source_is_names_and_contents(tmp_path: Path) -> None:
    first = dataset(put(tmp_path / "first", parts())).source()
    shutil.copytree(tmp_path / "first", tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert dataset(tmp_path / "elsewhere").source() == first
    (tmp_path / "elsewhere/train/ants/0.png").rename(tmp_path / "elsewhere/train/ants/00.png")
    renamed = dataset(tmp_path / "elsewhere").source()
    Image.new("RGB", (9, 7), (0, 9, 0)).save(tmp_path / "elsewhere/train/ants/00.png")
    assert len({first, renamed, dataset(tmp_path / "elsewhere").source()}) == 3


def test_test_images_that_are_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, parts())
    shutil.copy(tmp_path / "train/bees/1.png", tmp_path / "val/bees/0.png")
    found = r"1 of 4 test images are training images too \(val/bees/0.png = train/bees/1.png\)"
    with pytest.raises(DataError, match=rf"^dataset.root={tmp_path}: {found}; .* dataset.leaks=keep$"):
        dataset(tmp_path).source()
    assert len(dataset(tmp_path, leaks="keep").decode().test) == 4
    assert "warning: 1 of 4 test images are training images too" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nothing", r"no such folder; set it to the folder of the images, which are there as train/CLASS/IMAGE and"),
        ("a file", r"is no folder; set it to the folder of the images, which are there as train/CLASS/IMAGE and"),
        ("a class for testing only", r"unlike classes: wasps is only in val; for given weights .* dataset.classes$"),
        ("a class for training only", r"unlike classes: wasps is only in train; .*$"),
        ("an image in both", r"1 of 4 test images are training images too \(val/ants/9.png = train/ants/0.png\)"),
        ("no such link", r"cannot be read \(.*9.png"),
    ],
)
def test_a_tree_that_is_no_data_set(tmp_path: Path, change: str, message: str) -> None:
    root = tmp_path / "root"
    if change == "a file":
        root.write_text("")
    elif change != "nothing":
        put(root, parts())
    if change == "a class for testing only":
        shutil.copytree(root / "val/ants", root / "val/wasps")
    elif change == "a class for training only":
        shutil.copytree(root / "val/ants", root / "train/wasps")
    elif change == "an image in both":
        shutil.move(root / "val/ants/1.png", root / "val/ants/9.png")
        shutil.copy(root / "train/ants/0.png", root / "val/ants/9.png")
    elif change == "no such link":
        (root / "train/ants/9.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=rf"^dataset.root={root}: .*{message}") as caught:
        dataset(root).source()
    assert "\n" not in str(caught.value)


def test_too_few_images_to_train_on(tmp_path: Path) -> None:
    few = put(tmp_path, parts())
    for number in (1, 2, 3):
        (few / f"train/bees/{number}.png").unlink()
    lacking = dataset(few).lacks()
    assert set(lacking) == {"training"}
    assert lacking["training"].startswith(
        f"dataset.root={few}: too few training and test images: bees has 1 and 2; each"
    )
    assert not dataset(put(tmp_path / "more", parts())).lacks()


@pytest.mark.parametrize("layout", ["a test folder", "one image a class", "a share of 1"])
def test_images_for_testing_alone(layout: str, tmp_path: Path) -> None:
    """No class needs more than one, and a tenth of them is held out to choose ranges on."""
    names = {
        "a test folder": [name for name in parts() if name.startswith("val")],
        "one image a class": ["ants/0.png", *together(3)[3:]],
        "a share of 1": together(2),
    }[layout]
    images = dataset(put(tmp_path, names), test_share=1.0 if layout == "a share of 1" else 0.2)
    raw = images.decode()
    assert (len(raw.train), raw.classes) == (0, CLASSES)
    assert red(raw, "test") == set(range(4))
    assert set(images.lacks()) == {"training"}
    (tmp_path / "store").mkdir()
    splits = make_splits(raw, val_share=0.1, seed=0, folder=tmp_path / "store")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [0, 1, 3]
    tested = [splits.test.images[np.array([k])] for k in splits.originals]
    form = StoredForm(height=5, width=5)
    assert [read_picture(file, form).tolist() for file in splits.originals.values()] == [x[0].tolist() for x in tested]


def test_images_without_labels_for_calibration(tmp_path: Path) -> None:
    root, given = put(tmp_path / "root", together(2)), tmp_path / "given"
    for number in range(3):
        (given / "deeper").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (100 + number, 0, 0)).save(given / f"{'deeper/' * (number % 2)}{number}.PNG")
    (given / "notes.txt").write_text("taken in May")
    images = dataset(root, calibration=str(given), test_share=1.0)
    raw = images.decode()
    assert raw.calibration is not None
    assert sorted(raw.calibration[np.arange(3)][:, 0, 0, 0].tolist()) == [100, 101, 102]
    assert set(images.lacks()) == {"training", "validation"}
    before = images.source()
    assert before != dataset(root, test_share=1.0).source()
    (given / "0.PNG").rename(given / "renamed.png")
    assert images.source() == before
    shutil.copy(root / "bees/1.png", given)
    with pytest.raises(DataError, match=r"1 of 4 test images are calibration images too \(bees/1.png = 1.png\)"):
        images.source()
    assert dataset(root, calibration=str(given), test_share=1.0, leaks="keep").source() != before
    with pytest.raises(
        DataError, match=f"dataset.calibration={tmp_path}/nowhere: no such folder or file; name one with"
    ):
        dataset(root, calibration=f"{tmp_path}/nowhere").source()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"dataset.calibration=.*empty: holds no images \(.jpg, .png, ...\)"):
        dataset(root, calibration=f"{tmp_path}/empty").source()


def test_a_list_of_images_for_calibration(tmp_path: Path) -> None:
    root, given = put(tmp_path / "root", together(2)), tmp_path / "given"
    given.mkdir()
    for number in range(3):
        Image.new("RGB", (9, 7), (100 + number, 0, 0)).save(given / f"{number}.png")
    (given / "list.csv").write_text("image,taken\n0.png,May\n2.png,June\n")
    images = dataset(root, calibration=str(given / "list.csv"), test_share=1.0)
    raw = images.decode()
    assert raw.calibration is not None
    assert raw.calibration[np.arange(2)][:, 0, 0, 0].tolist() == [100, 102]
    before = images.source()
    Image.new("RGB", (9, 7), (7, 0, 0)).save(given / "2.png")
    assert images.source() != before
    for content, message in (
        ("image\n0.png\n9.png\n", r"1 of 2 files are missing: .*9\.png"),
        ("0.png\n1.png\n", "no column is called image; call that of the paths image"),
        ("", r"dataset\.calibration=.*list\.csv"),
    ):
        (given / "list.csv").write_text(content)
        with pytest.raises(DataError, match=message) as caught:
            images.source()
        assert str(caught.value).startswith("dataset.calibration=") and "\n" not in str(caught.value)


def test_folders_of_some_of_the_classes_of_given_weights(tmp_path: Path) -> None:
    """Those that ImageNet's are called by may be followed by words."""
    names = tmp_path / "synsets.txt"
    names.write_text("n01440764 tench, Tinca tinca\nwasps\nbees\nn02219486 ant\n")
    root = put(tmp_path / "root", ["ants/0.png", "bees/1.png"])
    (root / "ants").rename(root / "n02219486")
    images = dataset(root, classes=str(names))
    raw = images.decode()
    assert raw.classes == ("n01440764 tench, Tinca tinca", "wasps", "bees", "n02219486 ant")
    assert raw.test.labels.tolist() == [2, 3]
    before = images.source()
    names.write_text("n02219486\nbees")
    assert images.source() != before
    shutil.rmtree(root / "bees")
    assert images.decode().test.labels.tolist() == [0]
    names.write_text("wasps\nbees\n")
    with pytest.raises(DataError, match=f"^dataset.root={root}: n02219486 is none of the 2 dataset.classes"):
        images.source()


def test_an_unreadable_image_stops_the_data(tmp_path: Path) -> None:
    put(tmp_path / "root", parts())
    (tmp_path / "root/val/bees/1.png").write_text("hello")
    (tmp_path / "store").mkdir()
    with pytest.raises(DataError, match=r"1 of 4 files are not readable as images: val/bees/1.png \(no image\)"):
        make_splits(dataset(tmp_path / "root").decode(), val_share=0.25, seed=0, folder=tmp_path / "store")
    assert not (tmp_path / "store" / "splits.json").exists()


def test_splits_hold_every_image_whatever_the_size_of_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(put(tmp_path, parts(train=8)))
    whole = make_splits(data.decode(), val_share=0.25, seed=0)
    monkeypatch.setattr(splits, "_BLOCK_BYTES", 3 * 75 + 1)
    (tmp_path / "store").mkdir()
    written = make_splits(data.decode(), val_share=0.25, seed=0, folder=tmp_path / "store")
    loaded = load_splits(tmp_path / "store")
    assert whole.fingerprint == written.fingerprint == loaded.fingerprint
    assert (whole.mean_C, whole.std_C) == (loaded.mean_C, loaded.std_C)
    assert set(loaded.train.images[:][:, 0, 0, 0]) | set(loaded.val.images[:][:, 0, 0, 0]) == set(range(16))


@pytest.mark.parametrize(
    ("name", "classes", "counts"),
    [
        ("hymenoptera", ("ants", "bees"), (245, 153)),
        ("cats_dogs", ("cats", "dogs"), (240, 120)),
        ("weather", ("Cloudy", "Rain", "Shine", "Sunrise"), (160, 40)),
    ],
)
def test_real_photographs(sample_data: Path, name: str, classes: tuple[str, ...], counts: tuple[int, int]) -> None:
    raw = dataset(sample_data / name, store_size=32).decode()
    assert raw.classes == classes
    assert abs(len(raw.train) - counts[0]) <= 2
    assert len(raw.train) + len(raw.test) == sum(counts)
    images = raw.test.images[np.arange(10)]
    assert images.shape == (10, 32, 32, 3)
    assert images.std() > 30


@pytest.mark.parametrize(("largest", "white"), [(4000, 4095), (60_000, 65_535)])
def test_twelve_bits_in_sixteen_fill_all_levels(
    largest: int, white: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(parts()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, largest, (40, 40), dtype=np.uint16)
        values[0, 0] = largest if number == 0 else 0
        Image.fromarray(values).save(tmp_path / name)
    raw = dataset(tmp_path, store_size=40).decode()
    levels = np.unique(raw.train.images[np.arange(len(raw.train))])
    assert len(levels) > 200
    assert (raw.white, levels.max()) == (white, round(255 * largest / white))
    assert f"reach {largest}: {white} is white, and they are kept in 8 bits" in capsys.readouterr().out


def test_files_of_some_test_images_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(put(tmp_path / "root", parts(test=9)))
    (tmp_path / "store").mkdir()
    made = make_splits(data.decode(), val_share=0.25, seed=0, folder=tmp_path / "store")
    assert len(made.recorded) == 16
    assert (made.recorded[0], made.recorded[-1]) == (0, 17)
    assert load_splits(tmp_path / "store").originals == made.originals
    for place, file in made.originals.items():
        original = data.decode().test_files[made.recorded[place]]
        assert (file.read_bytes(), file.suffix) == (original.read_bytes(), ".png")
    size = made.originals[0].stat().st_size
    monkeypatch.setattr(splits, "_ORIGINAL_BYTES", 3 * size)
    (tmp_path / "small").mkdir()
    assert len(make_splits(data.decode(), val_share=0.25, seed=0, folder=tmp_path / "small").originals) in (2, 3)


def test_twelve_bits_of_colours_are_refused(tmp_path: Path) -> None:
    for name in parts():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        deep_colours(tmp_path / name, 4095)
    with pytest.raises(DataError, match="coloured 16-bit training images use 12 bits only, of which 4 would be read"):
        dataset(tmp_path).decode()


def test_how_images_are_divided_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a script of one's own tests on all images is not compared with a part of them unawares."""
    root = put(tmp_path, together(5))
    dataset(root).source()
    said = f"dataset.root={root}: 8 images are for training and 2 for testing, by dataset.test_share=0.2; to test "
    assert said in capsys.readouterr().out
    dataset(root, test_share=1.0).source()
    said = (
        f"dataset.root={root}: 1 of 10 test images is held out to choose ranges on, by dataset.val_share=0.1; to test"
    )
    assert said in capsys.readouterr().out
