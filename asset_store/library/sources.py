"""Where a library lies: an S3 prefix or a folder, listed and read, never written."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from botocore.exceptions import ClientError, IncompleteReadError

from asset_store.blobs.s3_client import (
    S3Place,
    answer_code,
    describe_place,
    is_s3_url,
    open_client,
    parse_s3_url,
    told,
)
from asset_store.errors import (
    PlaceInvalid,
    SourceKeyRefused,
    SourceObjectMissing,
    SourceObjectTooBig,
    SourceUnreachable,
)
from asset_store.library.keys import safe_key

MAX_OBJECT_BYTES = 64 * 1024 * 1024
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One file of a library. `key` is relative to the library, with forward slashes, exactly as it is stored; `etag`
    changes when the content may have; `version_id` is None where a listing does not tell it (it never does yet)."""

    key: str
    size: int
    etag: str
    version_id: str | None = None


Listing: TypeAlias = list[SourceObject]


class LibrarySource(Protocol):
    """A library's files. A key is a name to read by and to show with `safe_key`, never a local path to write to."""

    def list(self) -> Listing:
        """Every file, by ascending key; SourceUnreachable."""
        ...

    def read(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """One file's bytes.

        SourceObjectMissing; SourceObjectTooBig over `max_bytes`, before it is downloaded; SourceKeyRefused for a key
        that leads out of a folder; SourceUnreachable.
        """
        ...

    def describe(self) -> str:
        """The library's URL for a person, without credentials."""
        ...


def open_source(url: str, endpoint_url: str | None = None, region: str | None = None) -> LibrarySource:
    """The library at `s3://bucket/prefix` or in a folder; nothing is read yet. PlaceInvalid for another URL."""
    if is_s3_url(url):
        return S3Source(parse_s3_url(url), endpoint_url=endpoint_url, region=region)
    if not url.strip() or "://" in url:
        raise PlaceInvalid(f"{url!r} is not a place for a library", "Give s3://bucket/prefix or the path of a folder.")
    return FolderSource(Path(url).expanduser())


class FolderSource:
    """A LibrarySource in a folder.

    A symbolic link to a file counts where the file is in the library too; links to folders are not followed (a
    folder inside is listed at its own place, one outside is not the library's). What is no regular file is passed
    over. The etag is `<mtime in ns>-<size>`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def list(self) -> Listing:
        """See LibrarySource.list."""
        with self._told():
            return sorted(self._walk(), key=lambda found: found.key)

    def read(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """See LibrarySource.read."""
        path = self._inside(key)
        with self._told():
            try:
                # Not blocking: to open a pipe would wait for a writer.
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
                raise SourceObjectMissing(key, safe_key(key), self.describe()) from None
            with open(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise SourceKeyRefused(key, safe_key(key), "it is not a file")
                if found.st_size > max_bytes:
                    raise SourceObjectTooBig(key, safe_key(key), found.st_size, max_bytes)
                return _bounded(file.read(max_bytes + 1), key, max_bytes)

    def describe(self) -> str:
        """The folder's path."""
        return str(self.root)

    def _walk(self) -> Iterator[SourceObject]:
        real_root = self.root.resolve(strict=True)
        for folder, _, names in os.walk(real_root, onerror=_raise, followlinks=False):
            for name in names:
                path = Path(folder, name)
                try:
                    if path.is_symlink() and not path.resolve(strict=True).is_relative_to(real_root):
                        continue
                    found = path.stat()
                except (OSError, RuntimeError):
                    continue  # a dangling or circular link, or a file deleted while listing
                if stat.S_ISREG(found.st_mode):
                    key = path.relative_to(real_root).as_posix()
                    yield SourceObject(key, found.st_size, f"{found.st_mtime_ns}-{found.st_size}")

    def _inside(self, key: str) -> Path:
        """The real path of a key; SourceKeyRefused where it is not inside the library."""
        if not key or "\0" in key or key.startswith("/") or ".." in key.split("/"):
            raise SourceKeyRefused(key, safe_key(key), "it is not a path inside the library")
        with self._told():
            real_root = self.root.resolve(strict=True)
        try:
            path = (real_root / key).resolve()
            inside = path.is_relative_to(real_root)
        except (OSError, ValueError, RuntimeError):  # too long, not encodable, or links in a circle
            inside = False
        if not inside:
            raise SourceKeyRefused(key, safe_key(key), "it leads out of the library")
        return path

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SourceUnreachable(
                f"the library folder {self.root} cannot be read: {error.strerror or error}",
                "Check the folder's path and that the user that runs Onmodel may read it.",
            ) from error


class S3Source:
    """A LibrarySource under a prefix of a bucket. Keys there are names, not paths: `..` in one means nothing."""

    def __init__(self, place: S3Place, *, endpoint_url: str | None = None, region: str | None = None) -> None:
        self.place = place
        self.endpoint_url = endpoint_url
        self._client = open_client(endpoint_url, region)

    def list(self) -> Listing:
        """See LibrarySource.list; fetched in pages. The empty objects that stand for folders are left out."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.place.bucket, Prefix=self.place.prefix
        )
        found: Listing = []
        with self._told():
            for page in pages:
                for listed in page.get("Contents", []):
                    key = listed["Key"].removeprefix(self.place.prefix)
                    if key and not (key.endswith("/") and listed["Size"] == 0):
                        found.append(SourceObject(key, listed["Size"], listed["ETag"].strip('"')))
        return sorted(found, key=lambda listed: listed.key)

    def read(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """See LibrarySource.read."""
        if not key:
            raise SourceKeyRefused(key, "''", "it names no file")
        with self._told():
            try:
                answer = self._client.get_object(Bucket=self.place.bucket, Key=self.place.prefix + key)
            except ClientError as error:
                if answer_code(error) in ("NoSuchKey", "404"):
                    raise SourceObjectMissing(key, safe_key(key), self.describe()) from error
                raise
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] > max_bytes:
                    raise SourceObjectTooBig(key, safe_key(key), answer["ContentLength"], max_bytes)
                data = _bounded(body.read(max_bytes + 1), key, max_bytes)
                if len(data) != answer["ContentLength"]:
                    raise IncompleteReadError(actual_bytes=len(data), expected_bytes=answer["ContentLength"])
                return data

    def describe(self) -> str:
        """`s3://bucket/prefix`, with the endpoint's host where it is not AWS."""
        return describe_place(self.place, self.endpoint_url)

    def _told(self) -> AbstractContextManager[None]:
        return told(SourceUnreachable, self.place, self.endpoint_url)


def _bounded(data: bytes, key: str, max_bytes: int) -> bytes:
    """The file may have grown, or its stated length been untrue."""
    if len(data) > max_bytes:
        raise SourceObjectTooBig(key, safe_key(key), len(data), max_bytes)
    return data


def _raise(error: OSError) -> None:
    """os.walk passes over a folder it cannot read, and the library would look smaller than it is."""
    raise error
