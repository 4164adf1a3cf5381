"""Content-addressed blobs: one seam, a folder and S3 behind it.

A blob is known by the sha256 of its bytes and lies at `blobs/sha256/ab/<sha256>`. It never changes, so writing it
twice is harmless, and what is read is always verified against its own name.
"""

from asset_store.blobs.address import Sha256, blob_key, sha256_of
from asset_store.blobs.folder import FolderBlobs
from asset_store.blobs.s3 import S3Blobs
from asset_store.blobs.store import BlobStore, open_blobs

__all__ = ["BlobStore", "FolderBlobs", "S3Blobs", "Sha256", "blob_key", "open_blobs", "sha256_of"]
