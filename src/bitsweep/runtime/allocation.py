"""How a process gets its memory."""

import contextlib
import ctypes

#: Parameters of glibc's ``mallopt``, and what switches off what each governs.
_TRIM_THRESHOLD, _NEVER = -1, 2**31 - 1
_MMAP_MAX, _NONE = -4, 0


def keep_freed_memory() -> None:
    """Let this process use memory again that it has freed, instead of returning it to the system each time.

    Else every large tensor is new memory, which the system clears page by page: a quarter of a training step of AlexNet
    on a CPU. It does nothing where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, _NONE)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
