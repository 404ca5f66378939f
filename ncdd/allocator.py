"""Freed memory stays with the process: by default glibc's malloc costs a training on a CPU up to half its time.

It maps every large block from the kernel and unmaps it when it is freed, so each step of a training touches all of its
activations for the first time, page by page. PyTorch has no cache of its own on CPUs.
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
LARGEST = 2**25  # bytes; what every glibc accepts as a threshold for mapping, newer ones also more


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for the next step; whether there is a glibc to be told.

    Blocks of up to 1 GiB are kept, 32 MiB where an older glibc accepts no more. The resident set then stays at its
    peak until `give_back`. `MALLOC_*_` of the environment and `GLIBC_TUNABLES` are overruled; other allocators and
    systems are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    large = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, LARGEST)
    return bool(large and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_TOP_PAD, 2**26))


def give_back() -> None:
    """Return what is freed to the system once, so that the resident set is what is in use."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
