"""Giving memory that is free back to the system while many images pass through a process."""

from __future__ import annotations

import ctypes
import sys


def return_free_memory() -> None:
    """Ask the C library to return free memory to the system; where it has no such call nothing is done.

    glibc before 2.38 finds aligned blocks badly among free ones (its bug 14581). Torch's arrays are aligned, and small
    blocks that HDF5 keeps lie between them, so without this a process grows by a megabyte with every image.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
