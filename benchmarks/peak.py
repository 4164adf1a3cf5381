"""The most memory that this process ever took."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_mib() -> float:
    """The high-water mark of resident memory, in MiB.

    Linux's `getrusage` keeps the mark of the process that started this one, which may be many times as large; that of
    /proc begins anew with the program (proc_pid_status(5), VmHWM).
    """
    if _STATUS.exists():
        mark = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(mark.split()[1]) / 1024
    unit = 1024 if sys.platform == "linux" else 1024 * 1024  # kilobytes there, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
