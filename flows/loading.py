"""Loading references: pictures are read, checked, encoded and written down, each beside the others."""

from __future__ import annotations

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
from asset_store.tables import Library
from flows.progress import report
from flows.wiring import Store, engine, open_library

if TYPE_CHECKING:
    from ipadapter_engine.encoder import EncodedPicture


@dataclass
class Refusal:
    key: str
    reason: str
    message: str
    next_step: str


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


def embed_pictures(store: Store, sha256s: list[str], offset: int, total: int) -> int:
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


def _batched(items: Iterator[_Fetched], size: int) -> Iterator[list[_Fetched]]:
    while batch := list(islice(items, size)):
        yield batch
