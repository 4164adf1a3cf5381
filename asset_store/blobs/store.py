"""The seam: what every blob store does, and how one is opened from its URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from asset_store.blobs.address import Sha256
from asset_store.blobs.folder import FolderBlobs
from asset_store.blobs.s3 import S3Blobs
from asset_store.blobs.s3_client import is_s3_url, parse_s3_url
from asset_store.errors import PlaceInvalid


class BlobStore(Protocol):
    """Bytes by their sha256. Safe for many threads and many processes at once."""

    def put(self, data: bytes, content_type: str = "application/octet-stream") -> Sha256:
        """Make sure the blob is stored, durably and whole, and return its sha256.

        Putting what is already there changes nothing; a stored blob seen to be damaged is written again.
        BlobStoreUnreachable if it cannot be stored.
        """
        ...

    def get(self, sha256: Sha256) -> bytes:
        """The bytes, verified; BlobMissing, BlobCorrupt, BlobStoreUnreachable, NotASha256."""
        ...

    def has(self, sha256: Sha256) -> bool:
        """Whether something is stored under this name; it is not read, so not verified."""
        ...

    def iter_keys(self) -> Iterator[Sha256]:
        """Every blob's sha256 in ascending order, fetched page by page; what is no blob is passed over."""
        ...

    def delete(self, sha256: Sha256) -> None:
        """Remove the blob; no error if it is not there."""
        ...

    def describe(self) -> str:
        """The store's URL for a person, without credentials."""
        ...

    def check(self) -> None:
        """Write, read and delete a probe; BlobStoreUnreachable with the next step if any of it fails."""
        ...


def open_blobs(url: str, *, endpoint_url: str | None = None, region: str | None = None) -> BlobStore:
    """The store at `s3://bucket/prefix` or in a folder. Nothing is contacted yet: `check` does that.

    `endpoint_url` and `region` are for S3 only; credentials come from boto3's own chain. PlaceInvalid for a URL
    of another kind.
    """
    if is_s3_url(url):
        return S3Blobs(parse_s3_url(url), endpoint_url=endpoint_url, region=region)
    if not url.strip() or "://" in url:
        raise PlaceInvalid(
            f"{url!r} is not a place for blobs",
            "Give s3://bucket/prefix or the path of a folder in ONMODEL_BLOBS__URL.",
        )
    return FolderBlobs(Path(url).expanduser())
