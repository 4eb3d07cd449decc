"""The model that MLflow loads of a registered artifact: pictures in, names of classes out.

MLflow keeps this file with the model and runs it: it needs a bundle and its requirements, and nothing of this project.
"""

import importlib
import io
import sys
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
from PIL import Image


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Classifies pictures of any size: paths, encoded bytes, Pillow's images, or uint8 arrays [H, W, C] and [H, W]."""

    _skip_type_hint_validation = True  # MLflow would warn whoever loads it that it cannot check pictures of all kinds

    def load_context(self, context: Any) -> None:
        """Load the artifact from the bundle."""
        folder = Path(context.artifacts["bundle"])
        names = {file.stem for file in folder.glob("*.py")}
        # Programs of bundles have the same names: those of another model, or of anybody's, are left as they are.
        others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            self._pixels = importlib.import_module("pixels")
            self._bundle = importlib.import_module("classify").Bundle()
        finally:
            sys.path.remove(str(folder))
            for name in names:
                sys.modules.pop(name, None)
            sys.modules.update(others)

    def predict(self, context: Any, model_input: Any, params: Any = None) -> list[str]:
        """The most probable class of each picture.

        Args:
            model_input: one picture, a list of them, uint8 [N, H, W, C], or a table of pandas with them in its first
                column.

        Raises:
            ValueError: something is no picture; its place in the list is named.
        """
        images = []
        for number, picture in enumerate(_each(model_input)):
            try:
                images.append(self._stored(picture))
            except Exception as error:  # decoding something damaged can raise anything
                raise ValueError(f"picture {number} cannot be read: {error or type(error).__name__}") from error
        classes = self._bundle.about["classes"]
        return [classes[self._bundle.logits(image[None])[0].argmax()] for image in images]

    def _stored(self, picture: Any) -> np.ndarray[Any, Any]:
        """A picture in the form that the network was measured with."""
        form = self._bundle.form
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
                raise ValueError(f"an array is uint8 [H, W, C] or [H, W], not {picture.dtype} {list(picture.shape)}")
            if picture.shape == (form.height, form.width, form.channels):
                return picture
            picture = Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture)
        if not self._bundle.about["pictures"]:
            raise ValueError(f"this network reads rows of a table, as uint8 {[form.height, form.width, form.channels]}")
        if isinstance(picture, Image.Image):
            return self._pixels.as_stored(picture, form)  # type: ignore[no-any-return]
        if not isinstance(picture, bytes | str | Path):
            raise ValueError(f"{type(picture).__name__} is no path, bytes, image of Pillow's or uint8 array")
        source = io.BytesIO(picture) if isinstance(picture, bytes) else Path(picture)
        return self._pixels.read_picture(source, form)  # type: ignore[no-any-return]


def _each(given: Any) -> list[Any]:
    if hasattr(given, "iloc"):
        return list(given.iloc[:, 0])
    if isinstance(given, list | tuple):
        return list(given)
    return list(given) if isinstance(given, np.ndarray) and given.ndim == 4 else [given]


mlflow.models.set_model(Classifier())
