"""Classifies pictures: `python classify.py PICTURE...`, or `python classify.py --verify`."""

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from manifest import check_manifest
from network_input import network_input
from pixels import StoredForm, read_picture, why_unreadable

FOLDER = Path(__file__).parent


def main(arguments: list[str]) -> int:
    """Exit code: 0; 1 if a picture cannot be read, or something is not as recorded; 2 if nothing is to be done."""
    try:
        if arguments == ["--verify"]:
            check_manifest(FOLDER)
            return verify(Bundle())
        if not arguments or arguments[0].startswith("-"):
            print("usage: python classify.py PICTURE..., or python classify.py --verify", file=sys.stderr)
            return 2
        return classify(Bundle(), arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1


class Bundle:
    """What this folder holds: facts, and the artifact ready to run."""

    def __init__(self) -> None:
        from engine import load

        self.about: dict[str, Any] = json.loads((FOLDER / "bundle.json").read_text())
        self.form = StoredForm(**self.about["form"])
        self._run = load(FOLDER, self.about)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits [N, K] of stored images, uint8 or uint16 [N, H, W, C]."""
        about = self.about
        seen = network_input(
            images, input_shape=about["input_shape"], mean_C=about["mean"], std_C=about["std"], bgr=about["bgr"]
        )
        return np.asarray(self._run(seen))


def classify(bundle: Bundle, names: list[str]) -> int:
    """Print the class of every picture that can be read, and name those that cannot."""
    if not bundle.about["pictures"]:
        raise ValueError("this network reads rows of a table, which cannot be given here; only --verify runs")
    failed = 0
    for name in names:
        file = Path(name)
        try:
            if file.exists() and not file.is_file():
                raise ValueError("no file")
            image = read_picture(file, bundle.form)
        except MemoryError:
            raise
        except Exception as error:  # decoding something damaged can raise anything
            print(printable(f"{name}: cannot be read ({why_unreadable(file, error)})"), file=sys.stderr, flush=True)
            failed = 1
            continue
        (scores,) = bundle.logits(image[None])
        best = int(scores.argmax())
        probability = 1 / np.exp(scores - scores[best]).sum()
        print(printable(f"{name}: {bundle.about['classes'][best]} ({100 * probability:.1f} %)"), flush=True)
    return failed


def verify(bundle: Bundle) -> int:
    """Say whether the recorded logits come out again, and whether the original files become what was stored."""
    recorded = np.load(FOLDER / "recorded.npz")
    again, expected = bundle.logits(recorded["images"]), recorded["logits"]
    same = int((again.argmax(1) == expected.argmax(1)).sum())
    error = float(np.abs(again - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
    noise, least_db = float(np.square(again - expected).sum(dtype=np.float64)), bundle.about.get("least_sqnr_db", 20.0)
    signal = float(np.square(expected).sum(dtype=np.float64))
    sqnr_db = 10 * math.log10(signal / noise) if signal and noise else math.inf if noise == 0 else -math.inf
    print(
        f"{same} of {len(expected)} predictions as recorded; largest difference of logits {error:.1e} of the largest, "
        f"SQNR {sqnr_db:.1f} dB (at least {least_db:g})"
    )
    if same < len(expected):
        raise ValueError(
            f"the recorded predictions did not come out: {same} of {len(expected)}; SQNR of the logits {sqnr_db:.1f} dB"
        )
    if not sqnr_db >= least_db:
        raise ValueError(
            f"the recorded classes came out, but other logits: SQNR {sqnr_db:.1f} dB, where rounding on another CPU "
            f"leaves at least {least_db:g}: install the packages of requirements.txt, or measure on a CPU like this one"
        )
    files = sorted((FOLDER / "originals").glob("*"))
    differences = [
        np.abs(read_picture(file, bundle.form).astype(int) - recorded["images"][int(file.stem)]) for file in files
    ]
    unlike = [difference for difference in differences if difference.any()]
    if unlike:
        raise ValueError(
            f"{len(unlike)} of {len(files)} original files become other pixels than were measured, by up to "
            f"{max(int(each.max()) for each in unlike)} of 255: install the packages of requirements.txt"
        )
    if files:
        print(f"{len(files)} original files become, pixel for pixel, what was measured")
    return 0


def printable(text: str) -> str:
    """Text without characters that a terminal would obey, or cannot show."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # decoders warn of what they have mended
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
