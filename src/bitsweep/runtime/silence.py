"""A process that says nothing and takes nothing for too long is ended: nothing else tells that it hangs."""

import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any


class Heard:
    """A pipe into a process, which is heard whenever it takes something."""

    def __init__(self, pipe: IO[bytes], heard: Callable[[], None]) -> None:
        self._pipe, self._heard = pipe, heard

    def write(self, data: bytes) -> int:
        """Write, as files do."""
        taken = self._pipe.write(data)
        self._heard()
        return taken


class EndedBySilence:
    """Kills a process that is silent for too long, as long as the block is not left.

    Attributes:
        happened: whether it was killed.
    """

    def __init__(self, process: subprocess.Popen[Any], after_s: float) -> None:
        self.happened = False
        self._process, self._after_s = process, after_s
        self._heard, self._left = time.monotonic(), threading.Event()
        self._watch = threading.Thread(target=self._end_it, daemon=True)

    def heard(self) -> None:
        """It has said or taken something."""
        self._heard = time.monotonic()

    def __enter__(self) -> "EndedBySilence":
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._watch.join()

    def _end_it(self) -> None:
        while (rest := self._heard + self._after_s - time.monotonic()) > 0:
            if self._left.wait(rest):
                return
        self.happened = self._process.poll() is None
        self._process.kill()
