"""Classifies pictures: `python classify.py PICTURE...`, or `python classify.py --verify`."""

import json
import sys
from pathlib import Path

import numpy as np
from engine import load
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent
ABOUT = json.loads((FOLDER / "bundle.json").read_text())
RUN = load(FOLDER, ABOUT)


def stored(picture: Image.Image) -> np.ndarray:
    """A picture in the form in which the data set was: uint8 [H, W, C]."""
    height, width, channels = ABOUT["stored_shape"]
    upright = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR, bleed=(1 - ABOUT["crop"]) / 2)
    return np.asarray(fitted).reshape(height, width, channels)


def preprocessed(image: np.ndarray) -> np.ndarray:
    """What the network takes of a stored image: float32 [3, S, S], resized with antialiasing, normalised."""
    size, planes = ABOUT["image_size"], []
    for plane, mean, std in zip(np.moveaxis(image, 2, 0), ABOUT["mean"], ABOUT["std"], strict=True):
        scaled = Image.fromarray(plane.astype(np.float32) / 255)
        resized = np.asarray(scaled.resize((size, size), Image.Resampling.BILINEAR))
        planes.append((resized - np.float32(mean)) / np.float32(std))
    return np.stack(planes if len(planes) == 3 else planes * 3)


def logits(images: list[np.ndarray]) -> np.ndarray:
    """Logits [N, K] of stored images."""
    return np.asarray(RUN(np.stack([preprocessed(image) for image in images])))


def verify() -> str:
    """Empty if the recorded logits come out again, else what is wrong."""
    recorded = np.load(FOLDER / "recorded.npz")
    again, expected = logits(list(recorded["images"])), recorded["logits"]
    same = int((again.argmax(1) == expected.argmax(1)).sum())
    error = float(np.abs(again - expected).max() / np.abs(expected).max())
    print(f"{same} of {len(expected)} predictions as recorded; largest difference of logits {error:.1e} of the largest")
    return "" if same == len(expected) else "the recorded predictions did not come out"


if __name__ == "__main__":
    if sys.argv[1:] == ["--verify"]:
        sys.exit(verify() or 0)
    for name in sys.argv[1:]:
        (scores,) = logits([stored(Image.open(name))])
        best = int(scores.argmax())
        probability = 1 / np.exp(scores - scores[best]).sum()
        print(f"{name}: {ABOUT['classes'][best]} ({100 * probability:.1f} %)")
