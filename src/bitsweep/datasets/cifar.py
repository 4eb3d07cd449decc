"""CIFAR-10 and CIFAR-100: the Python batches, found on this machine or downloaded by torchvision.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np

from bitsweep.config.configurable import NOT_IN_KEYS, Place, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.data import downloads
from bitsweep.data.archives import read_npz
from bitsweep.errors import DataError
from bitsweep.results import RawData, Split

#: Folder, training batches, test batch, file and key of the class names, key of the labels, MD5 of the archive.
_FORMS: dict[str, tuple[str, tuple[str, ...], str, tuple[str, str], str, str]] = {
    "CIFAR10": (
        "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch",
        ("batches.meta", "label_names"), "labels", "c58f30108f718f92721af3b95e74349a",
    ),
    "CIFAR100": (
        "cifar-100-python", ("train",), "test", ("meta", "fine_label_names"), "fine_labels",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
}  # fmt: skip


@final
@configurable
class Cifar(Dataset):
    """50,000 training and 10,000 test images, coloured, 32 x 32; or what an archive of NumPy has of them.

    Attributes:
        variant: torchvision's name of the data set.
        root: folder that the unpacked archive lies in, or ``cifar10.npz`` with Keras's keys; empty to look for them.
        folder: that data sets lie in: looked through for both, also below the name of this one.
        download: whether torchvision may download what is not found, into ``folder``.
    """

    variant: Literal["CIFAR10", "CIFAR100"]
    root: Place = ""
    folder: Place = "data"
    download: Annotated[bool, NOT_IN_KEYS] = True

    def source(self) -> str:
        """MD5 of the published archive, which torchvision checks; of what is read where that is something else."""
        place = self._place()
        if place is None or (place.is_dir() and not self.root):
            return _FORMS[self.variant][-1]
        files = [place / file for file in self._batches()] if place.is_dir() else [place]
        return " ".join(hashlib.md5(file.read_bytes()).hexdigest() for file in files)

    def decode(self) -> RawData:
        """Read the batches, after downloading them where they are not on this machine."""
        place = self._place()
        if place is None:
            hint = "unpack the archive into a folder"
            downloads.with_torchvision(self.variant, folder=self.folder, dataset=self.name, hint=hint)
            place = self._place()
            assert place is not None
        if place.is_file():
            return read_npz(place, key=str(place), classes=())
        _, train, test, (names, key), labels, _ = _FORMS[self.variant]
        return RawData(
            train=_join([_read(place / file) for file in train], labels),
            test=_join([_read(place / test)], labels),
            classes=tuple(_read(place / names)[key]),
        )

    def _batches(self) -> list[str]:
        _, train, test, (names, _), *_ = _FORMS[self.variant]
        return [*train, test, names]

    def _place(self) -> Path | None:
        """The folder of batches, or the archive of NumPy, where there is one; None where it is to be downloaded."""
        root = Path(self.root or self.folder).expanduser()
        for place in (root, root / self.name):
            for folder in (place / _FORMS[self.variant][0], place):
                if all((folder / file).is_file() for file in self._batches()):
                    return folder
            if (archive := place / f"{self.variant.lower()}.npz").is_file():
                return archive
        if self.root or not self.download:
            key = f"dataset.root={self.root}" if self.root else "dataset.download=false"
            first, *_ = self._batches()
            folder = root / _FORMS[self.variant][0]
            raise DataError(f"{key}: {first} and its companions are not in {folder}; set dataset.root")
        return None


_PLAIN = {"_reconstruct", "ndarray", "dtype", "scalar", "encode"}


class _PlainUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and nothing else: a batch from elsewhere cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("numpy", "_codecs") and name in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a CIFAR batch")


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content: dict[str, Any] = _PlainUnpickler(stream, encoding="latin1").load()
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete it and get it again") from error
    return content


def _join(batches: list[dict[str, Any]], labels: str) -> Split:
    images = np.concatenate([np.asarray(batch["data"], np.uint8) for batch in batches])
    return Split(
        images=np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)),
        labels=np.concatenate([np.asarray(batch[labels], np.int64) for batch in batches]),
    )
