"""Labelled pictures as their owner lists them: which are for testing, and what is wrong with them.

Shape letters: N images, K classes.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bitsweep.data.class_names import number_labels
from bitsweep.data.image_files import ImageFiles, Picture, blocks_of, largest_of
from bitsweep.data.pixels import DEEPEST, StoredForm, white_of
from bitsweep.data.sampling import stratified_share, tell_held_out
from bitsweep.data.unlabelled import Unlabelled
from bitsweep.errors import DataError
from bitsweep.results import Array, RawData, RawSplit
from bitsweep.text import say, some


@contextlib.contextmanager
def named(key: str) -> Iterator[None]:
    """Errors of what is read within begin with the setting that names it.

    Raises:
        DataError: what is there cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{key}: cannot be read ({error}); repair it") from error
    except DataError as error:
        raise error if str(error).startswith("dataset.") else DataError(f"{key}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Every picture, as its owner lists it.

    Attributes:
        names: what the pictures are called, the same wherever they lie.
        contents: a digest of each.
        labels: names or numbers of their classes.
        tested: whether each is for testing; None where nothing is said of it.
        take: the pictures by their numbers.
        classes: names of the classes by their numbers; empty to name them by the labels.
        key: of the setting that names them, with its value, for errors.
        parts: what the owner calls the images for training and those for testing.
    """

    names: Sequence[str]
    contents: Sequence[bytes]
    labels: Sequence[str | int]
    tested: Sequence[bool] | None
    take: Callable[[Sequence[int]], Sequence[Picture]]
    key: str
    classes: Sequence[str] = ()
    parts: tuple[str, str] = ("the training images", "the test images")


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """A listing with its classes numbered, and divided.

    Attributes:
        labels_N: int64.
        test_N: whether an image is for testing, bool.
        classes: their names.
        untrainable: why no network can be trained on them; empty where one can.
    """

    labels_N: Array
    test_N: Array
    classes: tuple[str, ...]
    untrainable: str


def arrange(
    listing: Listing,
    calibration: Unlabelled | None,
    *,
    classes: Sequence[str],
    test_share: float,
    val_share: float,
    seed: int,
    leaks: Literal["refuse", "keep"],
) -> Arranged:
    """Number the classes, and divide what its owner has not divided.

    Args:
        calibration: pictures without labels, which must not be test images.
        classes: see `bitsweep.data.class_names.number_labels`.
        test_share: part of each class held out for testing; equal pictures stay together. Nothing is left for
            training where it is 1, or where a class has too few pictures to be divided.
        val_share: part of the images that are all for testing that ranges are chosen on, which is printed.
        leaks: whether to refuse or to keep test images that are, byte for byte, training or calibration images too.

    Raises:
        DataError: there are less than two classes, one is for training or testing only, or test images are training
            or calibration images too.
    """
    try:
        arranged = _arranged(listing, classes, test_share, seed, leaks)
        _check_leaks(listing, arranged.test_N, calibration, leaks)
    except DataError as error:
        raise DataError(f"{listing.key}: {error}") from error
    if arranged.test_N.all() and calibration is None:
        tell_held_out(listing.key, len(arranged.test_N), val_share)
    return arranged


def as_raw_data(
    listing: Listing, arranged: Arranged, calibration: Unlabelled | None, *, size: tuple[int, int], crop: float
) -> RawData:
    """The pictures, which are decoded when they are asked for.

    Args:
        size: height and width to store them in.
        crop: see `bitsweep.data.pixels.StoredForm`.

    Raises:
        DataError: their 16 bits hold too few levels.
    """
    trained, tested = map(np.flatnonzero, (~arranged.test_N, arranged.test_N))
    watched = (trained if len(trained) else tested).tolist()
    blocks = (listing.take([watched[number] for number in block]) for block in blocks_of(len(watched)))
    form = StoredForm(height=size[0], width=size[1], crop=crop, white=_white(*largest_of(blocks), key=listing.key))
    train, test = (
        RawSplit(images=_images(listing, chosen_N.tolist(), form), labels=arranged.labels_N[chosen_N])
        for chosen_N in (trained, tested)
    )
    in_files = all(isinstance(picture, Path) for picture in listing.take([0]))
    return RawData(
        train=train,
        test=test,
        classes=arranged.classes,
        calibration=calibration.images(form) if calibration else None,
        test_files=tuple(map(Path, listing.take(tested.tolist()))) if in_files else (),  # type: ignore[arg-type]
        crop=form.crop,
        white=form.white,
    )


def _arranged(
    listing: Listing, classes: Sequence[str], test_share: float, seed: int, leaks: Literal["refuse", "keep"]
) -> Arranged:
    labels_N, names = number_labels(listing.labels, classes or listing.classes)
    if len(names) < 2:
        raise DataError(f"all images are of class {names[0]}; there must be two classes or more")
    _check_twice(listing)
    divided = listing.tested is not None
    test_N = np.array(listing.tested) if divided else _held_out(labels_N, listing.contents, test_share, seed)
    if divided and not test_N.all() and not classes and not listing.classes:
        _require_like_classes(listing, labels_N, test_N, names)
    untrainable = too_few(labels_N, test_N, names)
    if untrainable and not divided and not test_N.all():
        test_N = np.ones_like(test_N)
        say(f"all images are for testing: {untrainable}")
    elif not divided and not test_N.all():
        say(
            f"{listing.key}: {np.count_nonzero(~test_N)} images are for training and {np.count_nonzero(test_N)} for "
            f"testing, by dataset.test_share={test_share:g}; to test given weights on all of them, set it to 1",
        )
    return Arranged(labels_N=labels_N, test_N=test_N, classes=names, untrainable=untrainable)


def _check_twice(listing: Listing) -> None:
    """Refuse a picture that is listed twice with unlike labels, and tell of others that are there twice."""
    first: dict[bytes, int] = {}
    again = [(first.setdefault(content, number), number) for number, content in enumerate(listing.contents)]
    again = [(one, other) for one, other in again if one != other]
    unlike = [(one, other) for one, other in again if listing.labels[one] != listing.labels[other]]
    for one, other in unlike:
        if listing.names[one] == listing.names[other]:
            raise DataError(
                f"{listing.names[one]} is listed as {listing.labels[one]} and as {listing.labels[other]}; images of "
                "several classes are not classified here: give each one label"
            )
    told = [
        f"{listing.names[one]} ({listing.labels[one]}) = {listing.names[other]} ({listing.labels[other]})"
        for one, other in unlike or again
    ]
    counted = "1 image is" if len(told) == 1 else f"{len(told)} images are"
    if unlike:
        say(f"warning: {counted} there twice with unlike labels: {some(told)}")
    elif again:
        say(f"{counted} there twice, and count{'s' * (len(told) == 1)} twice: {some(told)}")


def _held_out(labels_N: Array, contents: Sequence[bytes], share: float, seed: int) -> Array:
    """Whether an image is for testing, bool [N]; equal pictures are on the same side, so that none leaks."""
    first: dict[bytes, int] = {}
    first_N = np.array([first.setdefault(content, number) for number, content in enumerate(contents)])
    unlike = np.unique(first_N)
    return np.isin(first_N, unlike[stratified_share(labels_N[unlike], share, seed)])


def _require_like_classes(listing: Listing, labels_N: Array, test_N: Array, names: Sequence[str]) -> None:
    train, test = (set(labels_N[chosen_N].tolist()) for chosen_N in (~test_N, test_N))
    alone = [
        f"{names[label]} is only in {part}"
        for part, here, there in zip(listing.parts, (train, test), (test, train), strict=True)
        for label in sorted(here - there)
    ]
    if alone:
        raise DataError(
            f"training and test images have unlike classes: {some(alone)}; for given weights name all of theirs with "
            "dataset.classes"
        )


def too_few(labels_N: Array, test_N: Array, names: Sequence[str]) -> str:
    """Why there are too few images to train and test a network on; empty where there are enough."""
    if test_N.all():
        return "all of its images are for testing"
    train_K, test_K = (np.bincount(labels_N[chosen_N], minlength=len(names)) for chosen_N in (~test_N, test_N))
    few = [
        f"{names[k]} has {train_K[k]} and {test_K[k]}"
        for k in np.unique(labels_N).tolist()
        if train_K[k] < 2 or test_K[k] < 1
    ]
    if not few:
        return ""
    return (
        f"too few training and test images: {some(few)}; each class needs two (one is for validation) and one: add "
        "images, or delete the class"
    )


def _check_leaks(
    listing: Listing, test_N: Array, calibration: Unlabelled | None, leaks: Literal["refuse", "keep"]
) -> None:
    images = list(zip(listing.names, listing.contents, test_N, strict=True))
    training = {content: name for name, content, test in images if not test}
    given = dict(zip(calibration.contents, calibration.names, strict=True)) if calibration else {}
    for kind, known in (("training", training), ("calibration", given)):
        found = [f"{name} = {known[content]}" for name, content, test in images if test and content in known]
        if not found:
            continue
        what = f"{len(found)} of {test_N.sum()} test images are {kind} images too ({some(found)})"
        if leaks == "refuse":
            raise DataError(f"{what}; delete either, or set dataset.leaks=keep")
        say(f"warning: {what}")


def _images(listing: Listing, numbers: Sequence[int], form: StoredForm) -> ImageFiles:
    return ImageFiles(
        names=[listing.names[number] for number in numbers],
        take=lambda chosen: listing.take([numbers[each] for each in chosen]),
        form=form,
        place=listing.key,
    )


def _white(largest: int, coloured: int, *, key: str) -> int:
    """The white of pictures of 16 bits, by their largest values."""
    if coloured and white_of(coloured) != DEEPEST:
        raise DataError(
            f"{key}: the coloured 16-bit training images use {white_of(coloured).bit_length()} bits only, of which "
            f"{white_of(coloured).bit_length() - 8} would be read: save them in 8 bits, or let them use all 16"
        )
    white = white_of(largest)
    if largest or coloured:
        say(
            f"the 16-bit training images reach {max(largest, coloured)}: {white} is white, and they are kept in 8 bits "
            "(16 are kept in archives, dataset=npz)",
        )
    return white
