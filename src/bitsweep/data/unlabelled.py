"""Images without labels, which ranges are chosen on: a folder of pictures, or an array of NumPy."""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsweep.data.image_files import ImageFiles, files_in
from bitsweep.data.image_tree import content_digests, find_pictures
from bitsweep.data.pixels import StoredForm
from bitsweep.errors import DataError
from bitsweep.results import Array, Images


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """The pictures in a folder and in those below it.

    Attributes:
        names: paths below the folder.
        contents: SHA-256 of each.
    """

    folder: Path
    names: Sequence[str]
    contents: Sequence[bytes]

    def source(self) -> str:
        """SHA-256 of the contents, whatever the files are called."""
        return hashlib.sha256(b"".join(sorted(self.contents))).hexdigest()

    def images(self, form: StoredForm) -> ImageFiles:
        """The pictures in the form of all others."""
        return ImageFiles(
            names=self.names,
            take=files_in(self.folder, self.names),
            form=form,
            place=f"dataset.calibration={self.folder}",
        )


def find_unlabelled(place: str) -> PictureFolder:
    """The pictures that ``dataset.calibration`` names: those of a folder, or a single one.

    Raises:
        DataError: there are none.
    """
    key, path = f"dataset.calibration={place}", Path(place).expanduser()
    if not path.exists():
        raise DataError(f"{key}: no such folder; name one with images, which need no labels")
    folder, names = (path, find_pictures(path)) if path.is_dir() else (path.parent, [path.name])
    if not names:
        raise DataError(f"{key}: holds no images (.jpg, .png, ...)")
    try:
        return PictureFolder(folder=folder, names=names, contents=content_digests(folder, names))
    except OSError as error:
        raise DataError(f"{key}: cannot be read ({error}); repair it") from error


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
