"""Memory of a process of tests that runs many files."""

import ctypes
import gc


def give_back() -> None:
    """Returns what is freed to the system: the C library keeps it otherwise, until it lets go of it while something is measured."""
    gc.collect()
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        library.malloc_trim(0)
