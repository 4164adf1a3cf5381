"""Where a blob lies: its key is its content."""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import TypeAlias

from asset_store.errors import BlobCorrupt, NotASha256

Sha256: TypeAlias = str
"""64 lower-case hex digits."""

KEY_ROOT = "blobs/sha256/"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def sha256_of(data: bytes) -> Sha256:
    """The name of these bytes."""
    return hashlib.sha256(data).hexdigest()


def blob_key(sha256: Sha256) -> str:
    """`blobs/sha256/ab/abcd…`; NotASha256 for anything that is not 64 lower-case hex digits."""
    if not _SHA256.match(sha256):
        raise NotASha256(sha256)
    return f"{KEY_ROOT}{sha256[:2]}/{sha256}"


def sha256_in_key(tail: str) -> Sha256 | None:
    """The sha256 in the part of a key after `blobs/sha256/`; None where the key is no blob's."""
    shard, _, name = tail.partition("/")
    return name if _SHA256.match(name) and shard == name[:2] else None


def verified(data: bytes, sha256: Sha256, where: str) -> bytes:
    """`data` if it is what its name says; BlobCorrupt if not."""
    found = sha256_of(data)
    if found != sha256:
        raise BlobCorrupt(blob_key(sha256), sha256, found, where)
    return data


def probe() -> bytes:
    """Bytes that no one else stores, so that two checks at once do not delete each other's."""
    return b"onmodel check " + uuid.uuid4().bytes
