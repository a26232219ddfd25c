"""What the C library keeps of freed memory."""

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Returns freed memory to the system, where the C library is glibc, which keeps it otherwise.

    Loading a backbone frees about as much as it holds; kept, that would lie beside everything a step needs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
