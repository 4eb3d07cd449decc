"""The saved state from which an interrupted training continues."""

import contextlib
import time
from pathlib import Path
from typing import Any

import torch

#: The file is written when the time since then is worth it: so many times what writing it took.
WORTH = 20


class Unfinished:
    """A file with the state of a training after one of its epochs, random numbers included.

    It is written after every epoch, unless that would take more than a twentieth of the time.
    """

    def __init__(self, file: Path | None, device: torch.device) -> None:
        self._file, self._device = file, device
        self._written_at = self._cost_s = 0.0

    def read(self) -> dict[str, Any] | None:
        """The state that was written last, with random numbers as they were then; None if there is none to be read."""
        if not (self._file and self._file.exists()):
            return None
        try:
            kept: dict[str, Any] = torch.load(self._file, map_location="cpu", weights_only=True)
        except Exception:  # unpickling something else can raise anything
            print(f"{self._file} is damaged: training anew", flush=True)
            return None
        torch.set_rng_state(kept["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(kept["random_cuda"], self._device)
        return kept

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file, whole or not at all, unless that was done too short a time ago."""
        start = time.monotonic()
        if self._file is None or start - self._written_at < WORTH * self._cost_s:
            return
        random = {"random": torch.get_rng_state()}
        if self._device.type == "cuda":
            random["random_cuda"] = torch.cuda.get_rng_state(self._device)
        partial = self._file.with_name(self._file.name + ".partial")
        try:
            torch.save(state | random, partial)
            partial.replace(self._file)
        except (OSError, RuntimeError) as error:  # a full disk: training itself needs no room
            print(f"{self._file} cannot be written ({error}): training goes on without", flush=True)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        self._written_at = time.monotonic()
        self._cost_s = self._written_at - start
