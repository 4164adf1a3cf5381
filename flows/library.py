"""Ingesting a reference library: list, skip what is unchanged, download, check, embed, store."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from prefect import flow, task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE

from asset_store import audit
from asset_store.errors import (
    PictureRefused,
    SourceObjectMissing,
    SourceObjectTooBig,
    SourceUnreachable,
    StoreError,
)
from asset_store.library import LibraryFile, LibrarySource, SourceObject, parse_library, safe_key
from asset_store.library.library_file import LIBRARY_FILE
from asset_store.pictures import PictureLimits, open_picture, pixel_sha256
from asset_store.repositories import libraries
from asset_store.repositories.libraries import NewReference
from asset_store.retention import name_blobs
from asset_store.tables import Library, ReferenceState
from flows.accelerator import accelerator
from flows.parameters import Actor, Place
from flows.preview import preview_url
from flows.progress import report
from flows.retrying import if_it_may_pass
from flows.wiring import Store, address_of, engine, open_library, open_store

if TYPE_CHECKING:
    from ipadapter_engine.encoder import EncodedPicture

TRIED_AGAIN = ("missing", "unreadable", "too_many_bytes", "too_many_pixels")  # settings or permissions may have changed
CHUNK = 256  # references a Prefect task; embedding batches are smaller


@dataclass
class Refusal:
    key: str
    reason: str
    message: str
    next_step: str


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


def read_library_file(source: LibrarySource) -> tuple[LibraryFile, str]:
    """library.yaml of a library, and its sha256; raises LibraryFileInvalid or SourceUnreachable."""
    try:
        data = source.read(LIBRARY_FILE, max_bytes=4 * 1024 * 1024)
    except SourceObjectMissing:
        raise SourceUnreachable(
            f"{source.describe()} has no {LIBRARY_FILE}",
            "Write one beside the pictures: it names brand, characters, references and licences "
            "(docs/library.md has an example).",
        ) from None
    return _parsed(data.decode("utf-8-sig", errors="replace")), hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=1)
def _parsed(text: str) -> LibraryFile:
    """Each of an ingest's tasks reads the file: that of ten thousand references takes seconds to understand."""
    return parse_library(text, file=LIBRARY_FILE)


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
    return await asyncio.to_thread(_with_store, _embed_stored, sha256s, offset, total)


# ---------------------------------------------------------------------------- the work itself


@dataclass(frozen=True)
class _Fetched:
    """A picture that was downloaded, opened and stored, small enough to keep many: or why it was not."""

    found: SourceObject
    reference: NewReference | None
    prepared: np.ndarray | None
    refusal: Refusal | None


class _Reader:
    """What the reading threads do with one object; the full picture lives no longer than that."""

    def __init__(self, store: Store, source: LibrarySource) -> None:
        self.store, self.source = store, source
        self.limits = limits_of(store)
        self.encoder = engine(store.settings).encoder

    def fetch(self, found: SourceObject) -> _Fetched:
        """Download, open, store, prepare. SourceUnreachable where not the picture but the place is the trouble."""
        try:
            data = self.source.read(found.key, max_bytes=self.limits.max_bytes)
            opened = open_picture(data, self.limits)
        except SourceUnreachable as error:
            read_library_file(self.source)  # raises if the whole library is out of reach: the task is tried again
            return _Fetched(found, None, None, Refusal(found.key, "unreadable", error.message, error.next_step))
        except PictureRefused as error:
            return _Fetched(found, None, None, Refusal(found.key, error.reason, error.message, error.next_step))
        except StoreError as error:
            reason = "too_many_bytes" if isinstance(error, SourceObjectTooBig) else "refused"
            return _Fetched(found, None, None, Refusal(found.key, reason, error.message, error.next_step))
        reference = NewReference(
            key=found.key,
            sha256=self.store.blobs.put(data, "application/octet-stream"),
            pixel_sha256=pixel_sha256(opened.image),
            size_bytes=found.size,
            etag=found.etag,
            version_id=found.version_id,
            format=opened.format,
            width_px=opened.width_px,
            height_px=opened.height_px,
            notes=opened.notes,
        )
        return _Fetched(found, reference, self.encoder.prepare(opened.image), None)


def limits_of(store: Store) -> PictureLimits:
    """What the settings allow of a picture."""
    settings = store.settings.ingest
    return PictureLimits(max_bytes=settings.max_file_mb << 20, max_pixels=settings.max_megapixels * 1_000_000)


def picture_of(store: Store, sha256: str) -> Image.Image:
    """The picture of a stored blob, opened within those limits. BlobMissing; PictureRefused."""
    return open_picture(store.blobs.get(sha256), limits_of(store)).image


def load_pictures(
    store: Store, url: str, library_id: uuid.UUID, keys: list[str], offset: int, total: int
) -> dict[str, Any]:
    """What `load_references` does, in this thread: some pictures are read, some encoded and some written down at once.

    However many keys there are, so many pictures are held: those of four batches, as the encoder sees them.
    """
    settings = store.settings.ingest
    source = open_library(store.settings, url)
    file, _ = read_library_file(source)
    by_key = {o.key: o for o in source.list()}
    wanted = [by_key[k] for k in keys if k in by_key]
    saving = _Saving(store, library_id, file, source)
    reader = _Reader(store, source)
    with (
        ThreadPoolExecutor(settings.readers, thread_name_prefix="reader") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="saver") as saver,
    ):
        pending: Future[None] | None = None
        for batch in _batched(_read_ahead(pool, reader, wanted, 2 * settings.batch), settings.batch):
            good = {f.reference.sha256: f.prepared for f in batch if f.reference is not None and f.prepared is not None}
            rows, hidden = _encode(store, good)
            if pending is not None:
                pending.result()
            pending = saver.submit(saving.save, batch, reader.encoder.sha256, rows, hidden)
            offset += len(batch)
            report("references", offset, total)
        if pending is not None:
            pending.result()
    return saving.outcome


class _Saving:
    """Writes a batch down while the next one is encoded: one transaction a batch, in their order."""

    def __init__(self, store: Store, library_id: uuid.UUID, file: LibraryFile, source: LibrarySource) -> None:
        self.store, self.library_id, self.file, self.source = store, library_id, file, source
        self.outcome: dict[str, Any] = {"loaded": 0, "embedded": 0, "quarantined": []}

    def save(
        self,
        batch: Sequence[_Fetched],
        encoder: str,
        rows: Sequence[tuple[str, np.ndarray, str | None]],
        hidden: dict[str, bytes],
    ) -> None:
        found = {f.reference.sha256: f.found for f in batch if f.reference is not None}
        again = _Again(self.store, hidden, found, self.source)
        with self.store.database.transaction() as session:
            name_blobs(session, again.sha256s, again.put)  # a picture that was removed may be a reference now
            library = session.get_one(Library, self.library_id)
            for f in batch:
                if f.reference is not None:
                    libraries.save_reference(session, library, f.reference, self.file)
                    self.outcome["loaded"] += 1
                elif (r := f.refusal) is not None:
                    libraries.quarantine(session, library, f.found, r.reason, r.message, r.next_step)
                    self.outcome["quarantined"].append(asdict(r))
            self.outcome["embedded"] += libraries.save_embeddings(session, encoder, rows)


def _read_ahead(
    pool: ThreadPoolExecutor, reader: _Reader, wanted: Sequence[SourceObject], ahead: int
) -> Iterator[_Fetched]:
    """Fetch in the listing's order, `ahead` of what is encoded: downloads and decoding go on meanwhile."""
    todo = iter(wanted)
    window = deque(pool.submit(reader.fetch, o) for o in islice(todo, ahead))
    while window:
        yield window.popleft().result()
        window.extend(pool.submit(reader.fetch, o) for o in islice(todo, 1))


@dataclass(frozen=True)
class _Again:
    """Blobs of a batch, and how each is stored once more: hidden states, and pictures, which are read once more."""

    store: Store
    hidden: dict[str, bytes]
    found: dict[str, SourceObject] = field(default_factory=dict)
    source: LibrarySource | None = None

    @property
    def sha256s(self) -> set[str]:
        return {*self.hidden, *self.found}

    def put(self, sha256: str) -> None:
        """Raises SourceUnreachable where a picture was changed since it was read: the task is tried again."""
        if sha256 in self.hidden:
            self.store.blobs.put(self.hidden[sha256])
        elif self.source is not None:
            key = self.found[sha256].key
            data = self.source.read(key, max_bytes=limits_of(self.store).max_bytes)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise SourceUnreachable(f"{safe_key(key)} was changed while it was loaded", "Ingest the library again.")
            self.store.blobs.put(data)


def _encode(
    store: Store, prepared: dict[str, np.ndarray]
) -> tuple[list[tuple[str, np.ndarray, str | None]], dict[str, bytes]]:
    """Embedding rows of the pictures that the encoder has not seen yet, and their hidden states, which are blobs, by sha256."""
    made = engine(store.settings)
    with store.database.transaction() as session:
        missing = sorted(libraries.missing_embeddings(session, set(prepared), made.encoder.sha256))
    encoded = made.encoder.encode_prepared([prepared[s] for s in missing], hidden=made.needs_hidden)
    return _rows(store, zip(missing, encoded, strict=True))


def _rows(
    store: Store, encoded: Iterable[tuple[str, EncodedPicture]]
) -> tuple[list[tuple[str, np.ndarray, str | None]], dict[str, bytes]]:
    rows: list[tuple[str, np.ndarray, str | None]] = []
    stored: dict[str, bytes] = {}
    for sha256, e in encoded:
        hidden = None
        if e.hidden is not None:
            data = e.hidden.astype(np.float16).tobytes()
            hidden = store.blobs.put(data)
            stored[hidden] = data
        rows.append((sha256, e.pooled, hidden))
    return rows, stored


def _embed_stored(store: Store, sha256s: list[str], offset: int, total: int) -> int:
    made, settings, embedded = engine(store.settings), store.settings.ingest, 0
    with store.database.transaction() as session:
        missing = sorted(libraries.missing_embeddings(session, set(sha256s), made.encoder.sha256))
    for batch in made.encoder.encode_ahead(
        missing, lambda sha256: picture_of(store, sha256), batch=settings.batch, readers=settings.readers,
        hidden=made.needs_hidden,
    ):  # fmt: skip
        rows, hidden = _rows(store, batch)
        again = _Again(store, hidden)
        with store.database.transaction() as session:
            name_blobs(session, again.sha256s, again.put)
            embedded += libraries.save_embeddings(session, made.encoder.sha256, rows)
        offset += len(batch)
        report("references", offset, total)
    return embedded


def _note_ingest(store: Store, library_id: uuid.UUID, by: str, done: IngestReport) -> None:
    if done.loaded or done.removed or done.embedded:
        detail = {"loaded": done.loaded, "embedded": done.embedded, "removed": done.removed,
                  "quarantined": len(done.quarantined)}  # fmt: skip
        with store.database.transaction() as session:
            audit.record(session, by, "library ingested", f"library/{library_id}", detail)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _batched(items: Iterator[_Fetched], size: int) -> Iterator[list[_Fetched]]:
    while batch := list(islice(items, size)):
        yield batch


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
