"""How a process keeps its memory."""

import ctypes
from contextlib import suppress
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_HEAP_BLOCK: Final = 32 * 2**20
"""The most that glibc takes for M_MMAP_THRESHOLD on 64 bits."""


def keep_freed_memory() -> None:
    """Keep what a step of training frees for the next, instead of giving it back to the system.

    Each step needs the same tensors of up to 28 MB again. By default glibc gives such back at once and gets them anew,
    page by page: on two cores compiled training then took 1.0 to 1.7 times as long, from one start to the next. Does
    nothing where there is no glibc.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
