"""How a process gets its memory."""

import contextlib
import ctypes

#: Parameters of glibc's ``mallopt``.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process use memory again that it has freed, instead of returning it to the system each time.

    Else every large tensor is new memory, which the system clears page by page. It does nothing where the C library
    is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(threshold, _LARGE)
