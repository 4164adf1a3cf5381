"""Ingests a library in this process and prints what it took: `python -m benchmarks.library_memory LIBRARY HOME`.

The flow's own steps without Prefect, which is a server's memory and not the ingest's.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.peak import peak_mib
from flows.library import CHUNK, plan_ingest
from flows.loading import load_pictures
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
    took_s = round(time.perf_counter() - began, 1)
    print(json.dumps({"embedded": embedded, "peak_mib": round(peak_mib(), 1), "took_s": took_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
