"""Images without labels, which ranges are chosen on: pictures, or an array of NumPy."""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsweep.data.image_files import ImageFiles, Picture
from bitsweep.data.pixels import StoredForm
from bitsweep.errors import DataError
from bitsweep.results import Array, Images


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Pictures without labels.

    Attributes:
        names: what they are called.
        contents: a digest of each.
        take: the pictures by their numbers.
        key: of the setting that names them, with its value, for errors.
    """

    names: Sequence[str]
    contents: Sequence[bytes]
    take: Callable[[Sequence[int]], Sequence[Picture]]
    key: str

    def source(self) -> str:
        """SHA-256 of the contents, whatever they are called."""
        return hashlib.sha256(b"".join(sorted(self.contents))).hexdigest()

    def images(self, form: StoredForm) -> ImageFiles:
        """The pictures in the form of all others."""
        return ImageFiles(names=self.names, take=self.take, form=form, place=self.key)


def read_unlabelled(place: str, *, like: Images) -> Array:
    """The images of an array in an ``.npy`` or ``.npz`` file, as the others are: of one size and number of channels.

    Args:
        like: images that they go with, [N, H, W, C].

    Raises:
        DataError: there are none, or they are others.
    """
    key, file = f"dataset.calibration={place}", Path(place).expanduser()
    try:
        with file.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            arrays = [found] if isinstance(found, np.ndarray) else [found[name] for name in found.files]
    except FileNotFoundError as error:
        raise DataError(f"{key}: no such file; name an .npy or .npz file with images") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{key}: cannot be read as an array of NumPy ({error})") from error
    shape = tuple(like.shape[1:])
    for array in arrays:
        images = array[..., None] if array.ndim == 3 else array
        if images.dtype == like.dtype and images.shape[1:] == shape and len(images):
            return images
    shapes = " and ".join(f"{array.dtype} {list(array.shape)}" for array in arrays)
    raise DataError(
        f"{key}: holds {shapes or 'nothing'}; there must be images {like.dtype} [N, {', '.join(map(str, shape))}]"
    )
