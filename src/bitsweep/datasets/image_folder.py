"""Image files in one folder a class: the form in which most data sets of photographs come."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, final

import numpy as np
from pydantic import Field

from bitsweep.config.configurable import Count, Place, Share, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.data.image_files import ImageFiles, largest_of
from bitsweep.data.image_tree import content_digests, find_classes, find_parts, some
from bitsweep.data.pixels import DEEPEST, StoredForm, white_of
from bitsweep.data.splits import stratified_indices
from bitsweep.errors import DataError
from bitsweep.results import Array, RawData, RawSplit
from bitsweep.runtime.environment import version_of


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """Every image: its name below the root, the hash of its content, its class, and whether it is for testing."""

    names: Sequence[str]
    contents: Sequence[bytes]
    labels_N: Array
    test_N: Array
    classes: tuple[str, ...]


@final
@configurable
class ImageFolder(Dataset):
    """Photographs of any size and kind in ``train/CLASS/*`` and ``test/CLASS/*``, or in ``CLASS/*`` to be split.

    They are stored as squares of one size, see `bitsweep.data.pixels.read_picture`. In 16 bits white is the largest
    value of 8, 10, 12, 14 or 16 bits, as many as the training images use.

    Attributes:
        root: the folder that holds them.
        train_folder, test_folder: names of the two folders in the root; empty to find them by their usual names.
        test_share: part of each class held out for testing where there are no such folders; equal files stay together.
        store_size: height and width of the stored squares, in pixels.
        crop: side of the square that is kept of an image, relative to its short side.
        leaks: whether to refuse or to keep test images that are, byte for byte, training images too.
    """

    root: Place = ""
    train_folder: str = ""
    test_folder: str = ""
    test_share: Share = 0.2
    store_size: Count = 224
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    leaks: Literal["refuse", "keep"] = "refuse"

    def source(self) -> str:
        """SHA-256 of names and contents, the same wherever the root is; and the version of the decoder."""
        tree = self._tree()
        digest = hashlib.sha256()
        for name, content in zip(tree.names, tree.contents, strict=True):
            digest.update(os.fsencode(name) + b"\0" + content)
        return f"{digest.hexdigest()} pillow {version_of('pillow')}"

    def decode(self) -> RawData:
        """The images as files, which are decoded when they are asked for."""
        tree, folder = self._tree(), self._folder()
        train_names, test_names = (
            [tree.names[number] for number in np.flatnonzero(chosen_N).tolist()]
            for chosen_N in (~tree.test_N, tree.test_N)
        )
        largest, coloured = largest_of(folder, train_names)
        if coloured and white_of(coloured) != DEEPEST:
            raise DataError(
                f"dataset.root={self.root}: the coloured 16-bit training images use {white_of(coloured).bit_length()} "
                f"bits only, of which {white_of(coloured).bit_length() - 8} would be read: save them in 8 bits, or let "
                "them use all 16"
            )
        form = StoredForm(height=self.store_size, width=self.store_size, crop=self.crop, white=white_of(largest))
        if form.white != DEEPEST:
            print(f"the 16-bit training images reach {largest}: {form.white} is white", flush=True)
        train, test = (ImageFiles(folder=folder, names=names, form=form) for names in (train_names, test_names))
        return RawData(
            train=RawSplit(images=train, labels=tree.labels_N[~tree.test_N]),
            test=RawSplit(images=test, labels=tree.labels_N[tree.test_N]),
            classes=tree.classes,
            test_files=tuple(folder / name for name in test_names),
            crop=form.crop,
            white=form.white,
        )

    def _folder(self) -> Path:
        return Path(self.root).expanduser()

    def _tree(self) -> _Tree:
        if not self.root or not self._folder().is_dir():
            raise DataError(
                f"dataset.root={self.root}: no such folder; put the images there, as train/CLASS/IMAGE and "
                "test/CLASS/IMAGE or as CLASS/IMAGE, or set dataset.root to where they are"
            )
        try:
            tree = self._read(self._folder())
        except OSError as error:
            raise DataError(f"dataset.root={self.root}: cannot be read ({error}); repair it") from error
        self._check_counts(tree)
        self._check_leaks(tree)
        return tree

    def _read(self, root: Path) -> _Tree:
        parts = find_parts(root, train=self.train_folder, test=self.test_folder)
        found = [find_classes(root, part) for part in parts or ("",)]
        alone = [
            f"{name} is only in {part}"
            for part, here, there in zip(parts, found, reversed(found), strict=False)
            for name in here
            if name not in there
        ]
        if alone:
            raise DataError(f"dataset.root={self.root}: training and test images have unlike classes: {some(alone)}")
        classes = tuple(found[0])
        labelled = [
            (name, label, part)
            for part, files in enumerate(found)
            for label, kind in enumerate(classes)
            for name in files[kind]
        ]
        names = [name for name, _, _ in labelled]
        labels_N = np.array([label for _, label, _ in labelled], np.int64)
        contents = content_digests(root, names)
        test_N = np.array([part == 1 for *_, part in labelled]) if parts else self._held_out(labels_N, contents)
        return _Tree(names=names, contents=contents, labels_N=labels_N, test_N=test_N, classes=classes)

    def _held_out(self, labels_N: Array, contents: Sequence[bytes]) -> Array:
        """Whether an image is for testing, bool [N]; equal files are on the same side, so that none leaks."""
        first: dict[bytes, int] = {}
        first_N = np.array([first.setdefault(content, number) for number, content in enumerate(contents)])
        unlike = np.unique(first_N)
        return np.isin(first_N, unlike[stratified_indices(labels_N[unlike], self.test_share, self.split_seed)])

    def _check_counts(self, tree: _Tree) -> None:
        train_K, test_K = (
            np.bincount(tree.labels_N[chosen_N], minlength=len(tree.classes))
            for chosen_N in (~tree.test_N, tree.test_N)
        )
        few = [
            f"{name} has {train} and {test}"
            for name, train, test in zip(tree.classes, train_K, test_K, strict=True)
            if train < 2 or test < 1
        ]
        if few:
            raise DataError(
                f"dataset.root={self.root}: too few training and test images: {some(few)}; each class needs two (one "
                "is for validation) and one: add images, or delete the class"
            )

    def _check_leaks(self, tree: _Tree) -> None:
        images = list(zip(tree.names, tree.contents, tree.test_N, strict=True))
        training = {content: name for name, content, test in images if not test}
        leaks = [f"{name} = {training[content]}" for name, content, test in images if test and content in training]
        if not leaks:
            return
        what = f"{len(leaks)} of {tree.test_N.sum()} test images are training images too ({some(leaks)})"
        if self.leaks == "refuse":
            raise DataError(f"dataset.root={self.root}: {what}; delete either, or set dataset.leaks=keep")
        print(f"warning: {what}", flush=True)
