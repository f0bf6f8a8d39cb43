"""Memory that one step frees is kept for the next, where the C library would hand it back to the system."""

import ctypes
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed: a step on the CPU has thousands of page faults else, some 5 % of its time.

    Holds for the whole process from now on. Other C libraries are left as they are.

    Returns:
        Whether it was asked for.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    wanted = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**30, _TOP_PAD: 2**26}  # bytes
    return all(library.mallopt(name, value) for name, value in wanted.items())
