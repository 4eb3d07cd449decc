"""MNIST and its relatives: idx files, found on this machine or downloaded by torchvision.

Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998.
H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv 1708.07747.
"""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from bitsweep.config.configurable import NOT_IN_KEYS, Place, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.data import downloads
from bitsweep.errors import DataError
from bitsweep.results import Array, RawData, Split

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@configurable
class Mnist(Dataset):
    """60,000 training and 10,000 test images, grey, 28 x 28.

    Attributes:
        variant: torchvision's name of the data set: ``MNIST``, ``FashionMNIST``, ``KMNIST``.
        classes: names of the ten classes.
        md5: of the four packed files that would be downloaded, in the order train images, labels, test images, labels.
        root: folder of the idx files, packed or not, or torchvision's layout above them; empty to look for them.
        folder: that data sets lie in: looked through for torchvision's layout, also below the name of this one.
        system: folders where a system package puts the files, looked through after it.
        download: whether torchvision may download what is not found, into ``folder``.
    """

    variant: Literal["MNIST", "FashionMNIST", "KMNIST"]
    classes: tuple[str, ...]
    md5: tuple[str, str, str, str]
    root: Place = ""
    folder: Place = "data"
    system: tuple[Place, ...] = ()
    download: Annotated[bool, NOT_IN_KEYS] = True

    def source(self) -> str:
        """MD5 of the four files as they are here, or as they will be once they are downloaded."""
        files = self._files()
        return " ".join(hashlib.md5(file.read_bytes()).hexdigest() for file in files) if files else " ".join(self.md5)

    def decode(self) -> RawData:
        """Read the idx files, after downloading them where they are not on this machine."""
        files = self._files()
        if not files:
            hint = "put the four idx files into a folder"
            downloads.with_torchvision(self.variant, folder=self.folder, dataset=self.name, hint=hint)
            files = self._files()
        arrays = [read_idx(file) for file in files]
        splits = []
        for images, labels in (arrays[:2], arrays[2:]):
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise DataError(
                    f"dataset.root={files[0].parent}: {images.shape} images do not match {labels.shape} labels"
                )
            splits.append(Split(images=images[..., None], labels=labels.astype(np.int64)))
        return RawData(train=splits[0], test=splits[1], classes=self.classes)

    def _files(self) -> list[Path]:
        """The four files where they are found; none where they are to be downloaded."""
        if self.root:
            root = Path(self.root).expanduser()
            folders = [root, root / self.variant / "raw"]
        else:
            root = Path(self.folder).expanduser()
            layouts = [place / self.variant / "raw" for place in (root, root / self.name)]
            folders = [*layouts, *(Path(folder) for folder in self.system)]
        for folder in folders:
            files = [path for name in _FILES for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
            by_name = {path.name.removesuffix(".gz"): path for path in reversed(files)}
            if len(by_name) == len(_FILES):
                return [by_name[name] for name in _FILES]
        if self.root or not self.download:
            key = f"dataset.root={self.root}" if self.root else "dataset.download=false"
            looked = ", ".join(str(folder) for folder in folders)
            raise DataError(
                f"{key}: {_FILES[0]}(.gz) and its companions are not in {looked}; set dataset.root to their folder"
            )
        return []


def read_idx(path: Path) -> Array:
    """Read a file of unsigned bytes in the idx format, gzipped or not.

    Raises:
        DataError: the file is truncated, damaged, or something else.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); delete it and get it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an idx file of unsigned bytes; get it again")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if len(content) != header + int(np.prod(shape)):
        raise DataError(f"{path}: has {len(content)} bytes where {header + int(np.prod(shape))} belong; get it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
