"""Ingesting a reference library: list, skip what is unchanged, download, check, embed, store."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image
from prefect import flow, task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE

from asset_store import audit
from asset_store.library import SourceObject, safe_key
from asset_store.library.library_file import LIBRARY_FILE
from asset_store.repositories import libraries
from asset_store.tables import ReferenceState
from flows.accelerator import accelerator
from flows.loading import Refusal, embed_pictures, load_pictures, read_library_file
from flows.parameters import Actor, Place
from flows.preview import preview_url
from flows.progress import report
from flows.retrying import if_it_may_pass
from flows.wiring import Store, address_of, engine, open_library, open_store

TRIED_AGAIN = ("missing", "unreadable", "too_many_bytes", "too_many_pixels")  # settings or permissions may have changed
CHUNK = 256  # references a Prefect task; embedding batches are smaller


@dataclass
class IngestReport:
    """What an ingest did. `unlisted` are files that library.yaml does not name: they are left alone."""

    library: str
    brand: str
    listed: int = 0
    unchanged: int = 0
    loaded: int = 0
    embedded: int = 0
    removed: int = 0
    quarantined: list[Refusal] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What the listing and the database say is to be done."""

    library_id: uuid.UUID
    fetch: tuple[SourceObject, ...]
    embed_only: tuple[str, ...]  # sha256s whose blob is here but that this encoder has not seen
    report: IngestReport


@flow(name="ingest-library", flow_run_name="ingest {url}", retries=0)
async def ingest_library(url: Place, by: Actor = "schedule") -> dict[str, Any]:
    """Load a reference library from an S3 prefix or a folder. Safe to repeat: unchanged pictures cost a listing.

    Args:
        url: The library's place: s3://bucket/prefix or a folder of the machine that runs this.
        by: Who asks for it, as the audit will say.
    """
    url = address_of(url)
    plan, encoder_name = await asyncio.to_thread(_with_store, plan_ingest, url, by)
    done = plan.report
    total = len(plan.fetch) + len(plan.embed_only)
    report("references", 0, total)
    position = 0
    async with accelerator(needed=total > 0):
        for chunk in _chunks(plan.fetch, CHUNK):
            result = await load_references(url, plan.library_id, [o.key for o in chunk], position, total)
            done.loaded += result["loaded"]
            done.embedded += result["embedded"]
            done.quarantined += [Refusal(**q) for q in result["quarantined"]]
            position += len(chunk)
        for sha256s in _chunks(plan.embed_only, CHUNK):
            done.embedded += await embed_references(list(sha256s), position, total)
            position += len(sha256s)
    await asyncio.to_thread(_with_store, _note_ingest, plan.library_id, by, done)
    await acreate_markdown_artifact(_markdown(done, encoder_name), key="ingest-report", description=f"Ingest of {url}")
    if done.loaded:
        keys = [o.key for o in plan.fetch]
        if (sheet := await asyncio.to_thread(_with_store, _draw, plan.library_id, keys)) is not None:
            await acreate_image_artifact(preview_url(sheet), key="new-references", description=f"New in {url}")
    return done.as_json()


def _with_store(action: Any, *args: Any) -> Any:
    with open_store() as store:
        return action(store, *args)


def _draw(store: Store, library_id: uuid.UUID, keys: Sequence[str]) -> Image.Image | None:
    from flows.contact_sheet import reference_sheet  # that opens pictures as this module does

    return reference_sheet(store, library_id, keys)


def plan_ingest(store: Store, url: str, by: str) -> tuple[Plan, str]:
    """Read library.yaml, compare the listing with the database, and register the encoder."""
    source = open_library(store.settings, url)
    file, file_sha256 = read_library_file(source)
    listing = source.list()
    encoder = engine(store.settings).encoder
    objects = {o.key: o for o in listing}
    named = {r.file for r in file.references}
    with store.database.transaction() as session:
        library, changed = libraries.save_library(session, url, file, file_sha256)
        libraries.save_encoder(session, encoder.sha256, encoder.name, encoder.dim, encoder.preprocessing)
        known = libraries.known_references(session, library.id)
        refused = libraries.known_quarantine(session, library.id)
        result = IngestReport(source.describe(), file.brand.name, listed=len(named))
        fetch, kept = [], []
        for entry in file.references:
            found = objects.get(entry.file)
            row, bad = known.get(entry.file), refused.get(entry.file)
            if found is None:
                gone = SourceObject(entry.file, 0, "")
                problem = Refusal(entry.file, "missing", f"{safe_key(entry.file)} is named in library.yaml but not there",
                                  "upload the picture, or take its entry out of library.yaml")  # fmt: skip
                libraries.quarantine(session, library, gone, problem.reason, problem.message, problem.next_step)
                result.quarantined.append(problem)
            elif row is not None and (row.etag, row.size_bytes) == (found.etag, found.size):
                libraries.describe(session, library, row, file, entry)
                kept.append(row)
            elif (
                bad is not None
                and bad.reason not in TRIED_AGAIN
                and (bad.etag, bad.size_bytes) == (found.etag, found.size)
            ):
                result.quarantined.append(Refusal(bad.key, bad.reason, bad.message, bad.next_step))
            else:
                fetch.append(found)
        result.unchanged = len(kept)
        result.removed = libraries.remove_keys(session, library, set(known) - named)
        libraries.forget_quarantine(session, library, set(refused) - named)
        result.unlisted = sorted(k for k in objects if k not in named and k != LIBRARY_FILE and not _hidden(k))
        embed = libraries.missing_embeddings(
            session, {r.sha256 for r in kept if r.state is ReferenceState.ACTIVE}, encoder.sha256
        )
        if changed:  # last: the audit's lock is held until the transaction ends
            detail = {"url": url, "file_sha256": file_sha256}
            audit.record(session, by, "library loaded", f"library/{library.id}", detail)
        return Plan(library.id, tuple(fetch), tuple(sorted(embed)), result), encoder.name


def _hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


@task(
    retries=3,
    retry_delay_seconds=[2, 10, 60],
    cache_policy=NO_CACHE,
    task_run_name="load from {offset}",
    retry_condition_fn=if_it_may_pass,
)
async def load_references(url: str, library_id: uuid.UUID, keys: list[str], offset: int, total: int) -> dict[str, Any]:
    """Download, check, embed and store some keys. Safe to repeat: rows and blobs are unique by content."""
    return await asyncio.to_thread(_with_store, load_pictures, url, library_id, keys, offset, total)


@task(
    retries=3,
    retry_delay_seconds=[2, 10, 60],
    cache_policy=NO_CACHE,
    retry_condition_fn=if_it_may_pass,
)
async def embed_references(sha256s: list[str], offset: int, total: int) -> int:
    """Embed references whose pictures are stored already, with the encoder of today's settings."""
    return await asyncio.to_thread(_with_store, embed_pictures, sha256s, offset, total)


def _note_ingest(store: Store, library_id: uuid.UUID, by: str, done: IngestReport) -> None:
    if done.loaded or done.removed or done.embedded:
        detail = {"loaded": done.loaded, "embedded": done.embedded, "removed": done.removed,
                  "quarantined": len(done.quarantined)}  # fmt: skip
        with store.database.transaction() as session:
            audit.record(session, by, "library ingested", f"library/{library_id}", detail)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _markdown(done: IngestReport, encoder: str) -> str:
    lines = [
        f"# {done.brand}: {safe_key(done.library)}",
        "",
        f"{done.listed} listed, {done.unchanged} unchanged, {done.loaded} loaded, {done.embedded} embedded with "
        f"{encoder}, {done.removed} removed, {len(done.quarantined)} quarantined, {len(done.unlisted)} not listed.",
    ]
    if done.quarantined:
        lines += ["", "| Quarantined | Why | What to do |", "|---|---|---|"]
        lines += [f"| {_cell(safe_key(q.key))} | {_cell(q.message)} | {_cell(q.next_step)} |" for q in done.quarantined]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
