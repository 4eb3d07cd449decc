"""Where pictures without labels are: in a folder, in a list, or in one file."""

from pathlib import Path

from bitsweep.data.image_files import files_in
from bitsweep.data.image_tree import content_digests, find_pictures, is_picture
from bitsweep.data.listing import named
from bitsweep.data.picture_lists import read_list
from bitsweep.data.table_listing import columns_for, pictures_of
from bitsweep.data.unlabelled import Unlabelled
from bitsweep.errors import DataError


def find_unlabelled(place: str) -> Unlabelled:
    """The pictures that ``dataset.calibration`` names: those of a folder, of a list as of ``dataset=manifest``, or one.

    Raises:
        DataError: there are none, or the list cannot be read.
    """
    key, path = f"dataset.calibration={place}", Path(place).expanduser()
    if not path.exists():
        raise DataError(f"{key}: no such folder or file; name one with images, which need no labels")
    with named(key):
        if path.is_file() and not is_picture(path):
            return _listed(path, key)
        folder, names = (path, find_pictures(path)) if path.is_dir() else (path.parent, [path.name])
        if not names:
            raise DataError("holds no images (.jpg, .png, ...)")
        contents = content_digests(folder, names)
        return Unlabelled(names=names, contents=contents, take=files_in(folder, names), key=key)


def _listed(file: Path, key: str) -> Unlabelled:
    table, _ = read_list(file, key)
    columns = columns_for("image", table)
    if not columns:
        raise DataError("no column is called image; call that of the paths image")
    names, contents, take = pictures_of(table, folder=file.parent, image=columns[0], rows=range(len(table)))
    return Unlabelled(names=names, contents=contents, take=take, key=key)
