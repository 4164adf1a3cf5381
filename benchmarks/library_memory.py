"""Ingests a library in this process and prints what it took: `python -m benchmarks.library_memory LIBRARY HOME`.

The flow's own steps without Prefect, which is a server's memory and not the ingest's.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from flows.library import CHUNK, load_pictures, plan_ingest
from flows.settings import Settings
from flows.wiring import open_store


def main(library: str, home: str) -> None:
    began = time.perf_counter()
    embedded = 0
    with open_store(Settings(home=Path(home))) as store:
        plan, _ = plan_ingest(store, library, "benchmark")
        keys = [found.key for found in plan.fetch]
        for start in range(0, len(keys), CHUNK):
            done = load_pictures(store, library, plan.library_id, keys[start : start + CHUNK], start, len(keys))
            embedded += done["embedded"]
    unit = 1024 if sys.platform == "linux" else 1024 * 1024  # kilobytes there, bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(
        json.dumps({"embedded": embedded, "peak_mib": round(peak, 1), "took_s": round(time.perf_counter() - began, 1)})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
