"""How a command ends that is interrupted, or whose output nobody takes: with an exit code, and without a traceback."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

#: Exit code where the output was closed, as of programs that the signal for it ends.
_UNREAD = 128 + 13


@contextlib.contextmanager
def ended_from_outside() -> Iterator[None]:
    """End without a traceback where Ctrl-C is typed, or where nobody reads the output any more, as in ``| head``."""
    _open_standard_files()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        # Errors of files name their file.
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        with Path(os.devnull).open("w") as nowhere:  # what is still to be written must not fail again
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(_UNREAD)
        print(f"error: standard output: {error.strerror}", file=sys.stderr)
        sys.exit(1)


def _open_standard_files() -> None:
    """Open those of the standard files that were closed before the start: what is printed must not get into others.

    The system gives the next file that is opened the lowest free number, and so that of standard output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            mode = "r" if name == "stdin" else "w"
            nowhere = Path(os.devnull).open(mode)  # noqa: SIM115 - to the end
            if nowhere.fileno() != number:
                os.dup2(nowhere.fileno(), number)
            os.set_inheritable(number, True)
            setattr(sys, name, nowhere)
