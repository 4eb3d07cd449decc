"""Labelled pictures as their owner lists them: which are for testing, and what is wrong with them.

Shape letters: N images, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitsweep.data.class_names import number_labels
from bitsweep.data.image_files import Picture
from bitsweep.data.image_tree import some
from bitsweep.data.splits import stratified_indices
from bitsweep.errors import DataError
from bitsweep.results import Array


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
    listing: Listing, *, classes: Sequence[str], test_share: float, seed: int, leaks: Literal["refuse", "keep"]
) -> Arranged:
    """Number the classes, and divide what its owner has not divided.

    Args:
        classes: see `bitsweep.data.class_names.number_labels`.
        test_share: part of each class held out for testing; equal pictures stay together. Nothing is left for
            training where it is 1, or where a class has too few pictures to be divided.
        leaks: whether to refuse or to keep test images that are, byte for byte, training images too.

    Raises:
        DataError: there are less than two classes, one is for training or testing only, or test images are training
            images too.
    """
    labels_N, names = number_labels(listing.labels, classes or listing.classes)
    if len(names) < 2:
        raise DataError(f"all images are of class {names[0]}; there must be two classes or more")
    divided = listing.tested is not None
    test_N = np.array(listing.tested) if divided else _held_out(labels_N, listing.contents, test_share, seed)
    if divided and not test_N.all() and not classes and not listing.classes:
        _require_like_classes(listing, labels_N, test_N, names)
    untrainable = too_few(labels_N, test_N, names)
    if untrainable and not divided and not test_N.all():
        test_N = np.ones_like(test_N)
        print(f"all images are for testing: {untrainable}", flush=True)
    _check_leaks(listing, test_N, leaks)
    return Arranged(labels_N=labels_N, test_N=test_N, classes=names, untrainable=untrainable)


def _held_out(labels_N: Array, contents: Sequence[bytes], share: float, seed: int) -> Array:
    """Whether an image is for testing, bool [N]; equal pictures are on the same side, so that none leaks."""
    first: dict[bytes, int] = {}
    first_N = np.array([first.setdefault(content, number) for number, content in enumerate(contents)])
    unlike = np.unique(first_N)
    return np.isin(first_N, unlike[stratified_indices(labels_N[unlike], share, seed)])


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


def _check_leaks(listing: Listing, test_N: Array, leaks: Literal["refuse", "keep"]) -> None:
    images = list(zip(listing.names, listing.contents, test_N, strict=True))
    training = {content: name for name, content, test in images if not test}
    found = [f"{name} = {training[content]}" for name, content, test in images if test and content in training]
    refuse_leaks(found, int(test_N.sum()), kind="training", leaks=leaks)


def refuse_leaks(found: Sequence[str], count: int, *, kind: str, leaks: Literal["refuse", "keep"]) -> None:
    """Refuse test images that are of another kind too, or keep and print them.

    Raises:
        DataError: there are some.
    """
    if not found:
        return
    what = f"{len(found)} of {count} test images are {kind} images too ({some(found)})"
    if leaks == "refuse":
        raise DataError(f"{what}; delete either, or set dataset.leaks=keep")
    print(f"warning: {what}", flush=True)
