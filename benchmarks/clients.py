"""`make bench-clients`: does the API hold when many come at once, each with a key of its own?

    python -m benchmarks.clients [--clients 50] [--seconds 30] [--assets 1000] [--home FOLDER]

`onmodel up` serves a database of many assets of five brands, in the embedded PostgreSQL, and so many clients come to it at once from this
process, on this machine's cores: viewers of one brand, producers and agents that ask for character sheets, cancel them and follow them by
server-sent events, and keys that were revoked or are over. Each does one thing after another, with a pause as long as a program's own work.
What they were answered is held against what they may see and what the database has in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

from benchmarks import many_assets
from benchmarks.client_calls import Client, Seen
from benchmarks.client_keys import Key, Kind, make_keys, pictures_of
from benchmarks.client_record import Record, recorded
from benchmarks.rows import Row, at_most, percentile, tell
from benchmarks.serving import served
from flows.settings import load_settings
from flows.wiring import engine, open_store

# Small enough to be reached within the run: pictures a day of a brand, and of a key.
OF_BRAND, OF_ASKER = 30, 8
ANSWER_MS = 1000.0
CAMPAIGN, DRAWN = 20, 10  # the newest, which have pictures, are of all brands


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--assets", type=int, default=1_000)
    parser.add_argument("--home", type=Path, help="keep the database there")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="onmodel-") as folder:
        seen, record = _measured(given.home or Path(folder), given)
    met = [tell(row) for row in rows(seen, record, given.clients)]
    return 0 if all(met) else 1


def rows(seen: Seen, record: Record, clients: int) -> Iterator[Row]:
    """What was measured and what must not be, of all clients together."""
    answered = sum(map(len, seen.times_ms.values()))
    yield Row(f"requests a second, {clients} clients", answered / seen.took_s, "1/s", "", True)
    yield Row("processor time of the API a request", seen.processor_s * 1000 / answered, "ms", "", True)
    for kind, times in sorted(seen.times_ms.items()):
        yield at_most(f"{kind}, p95 of {len(times)}", percentile(times, 0.95), ANSWER_MS, "ms")
    for name, count in (
        ("5xx, and connections that broke", len(seen.faults)),
        ("answers that no rule gives", len(seen.strange)),
        ("answers with another brand's data", len(seen.foreign)),
        ("keys that are over and were let in", seen.let_in),
        ("followers that were not told of the end", seen.not_told),
        ("idempotency keys that were answered two sheets", len(seen.two_runs)),
        ("pictures beyond a quota", record.overspent),
    ):
        yield Row(name, float(count), "", "= 0", count == 0)
    one_each = record.least == record.most == 1
    yield Row(f"sheets an idempotency key, at most, of {record.keys}", float(record.most), "", "= 1", one_each)
    yield Row("requests refused as a quota was spent", float(seen.spent), "", ">= 1", seen.spent >= 1)
    yield Row("requests sent again and answered as before", float(seen.replayed), "", ">= 1", seen.replayed >= 1)


def _measured(home: Path, given: argparse.Namespace) -> tuple[Seen, Record]:
    os.environ.update(ONMODEL_HOME=str(home), ONMODEL_QUOTA__BRAND=str(OF_BRAND), ONMODEL_QUOTA__ASKER=str(OF_ASKER))
    settings = load_settings()
    began = time.monotonic()
    with open_store(settings) as store:
        if not (home / "seeded").exists():
            many_assets.seed(store, given.assets, engine(settings).encoder, campaign=CAMPAIGN, drawn=DRAWN)
            (home / "seeded").touch()
        keys = make_keys(store, given.clients)
        shown = pictures_of(store)
    print(
        f"{given.assets} assets and {len(keys)} keys are there after {time.monotonic() - began:.0f} s", file=sys.stderr
    )
    with served(home) as (address, _):
        (api,) = (child for child in psutil.Process().children() if "up" in child.cmdline())
        before = api.cpu_times()
        seen = asyncio.run(_crowd(address, keys, shown, given.seconds))
        after = api.cpu_times()
        seen.processor_s = after.user + after.system - before.user - before.system
    for what, told in (
        ("fault", seen.faults),
        ("strange", seen.strange),
        ("foreign", seen.foreign),
        ("two", seen.two_runs),
    ):
        for line in told[:5]:
            print(f"{what}: {line}", file=sys.stderr)
    with open_store(settings) as store:
        return seen, recorded(store, OF_BRAND, OF_ASKER)


async def _crowd(address: str, keys: Sequence[Key], shown: dict[str, list[tuple[str, str]]], seconds: float) -> Seen:
    """All clients at once, for so long; each ends what it is at."""
    seen = Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits, trust_env=False) as http:
        began = time.perf_counter()
        ends_at = began + seconds
        await asyncio.gather(*(Client(http, key, shown, seen, i).work(ends_at) for i, key in enumerate(keys)))
        seen.took_s = time.perf_counter() - began
    assert any(key.kind is Kind.OVER for key in keys)
    return seen


if __name__ == "__main__":
    sys.exit(main())
