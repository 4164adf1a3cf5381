"""Blobs in a folder: written aside, flushed, then renamed into place."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asset_store.blobs.address import KEY_ROOT, Sha256, blob_key, probe, sha256_in_key, sha256_of, verified
from asset_store.errors import BlobMissing, BlobStoreUnreachable

INCOMING = "blobs/incoming"
"""Where blobs are written before they are renamed: beside `blobs/sha256`, so on the same file system."""

_NEXT_STEPS = {
    errno.EACCES: "Give the user that runs Onmodel the right to read and write this folder.",
    errno.EPERM: "Give the user that runs Onmodel the right to read and write this folder.",
    errno.EROFS: "The file system is mounted read-only: mount it writable, or name another folder.",
    errno.ENOSPC: "The disk is full: free some room (`onmodel gc` finds unused blobs), or name another folder.",
    errno.EDQUOT: "The disk quota is used up: raise it, or name another folder.",
    errno.ENOTDIR: "A file stands where the folder should be: move it, or name another folder.",
    errno.EEXIST: "A file stands where the folder should be: move it, or name another folder.",
}


class FolderBlobs:
    """A BlobStore in a folder of one file system; the folder is made on the first put."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def put(self, data: bytes, content_type: str = "application/octet-stream") -> Sha256:
        """See BlobStore.put. The content type is not kept: a file has none."""
        sha256 = sha256_of(data)
        path = self._path(sha256)
        with self._told():
            if not self._holds(path, data):
                self._write(path, data)
            # Also when the blob was there: its writer may have renamed it and died before this flush.
            _flush_folder(path.parent)
        return sha256

    def get(self, sha256: Sha256) -> bytes:
        """See BlobStore.get."""
        with self._told():
            try:
                data = self._path(sha256).read_bytes()
            except FileNotFoundError:
                raise BlobMissing(sha256, self.describe()) from None
        return verified(data, sha256, self.describe())

    def has(self, sha256: Sha256) -> bool:
        """See BlobStore.has."""
        with self._told():
            return self._path(sha256).is_file()

    def iter_keys(self) -> Iterator[Sha256]:
        """See BlobStore.iter_keys; one shard's names at a time are held in memory."""
        with self._told():
            for shard in _names(self.root / KEY_ROOT):
                for name in _names(self.root / KEY_ROOT / shard):
                    if sha256 := sha256_in_key(f"{shard}/{name}"):
                        yield sha256

    def delete(self, sha256: Sha256) -> None:
        """See BlobStore.delete."""
        path = self._path(sha256)
        with self._told():
            try:
                path.unlink()
            except FileNotFoundError:
                return
            _flush_folder(path.parent)

    def describe(self) -> str:
        """The folder's path."""
        return str(self.root)

    def check(self) -> None:
        """See BlobStore.check."""
        sha256 = self.put(probe())
        self.get(sha256)
        self.delete(sha256)

    def remove_leftovers(self, older_than_s: float = 86_400) -> int:
        """Delete what killed writers left half written; the number of files deleted.

        Only files not touched for `older_than_s`, since a younger one may still be being written.
        """
        removed = 0
        with self._told():
            for name in _names(self.root / INCOMING):
                path = self.root / INCOMING / name
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime >= older_than_s:
                        path.unlink()
                        removed += 1
        return removed

    def _path(self, sha256: Sha256) -> Path:
        return self.root / blob_key(sha256)

    @staticmethod
    def _holds(path: Path, data: bytes) -> bool:
        """Whether exactly these bytes are already stored; the size is compared before anything is read."""
        try:
            return path.stat().st_size == len(data) and path.read_bytes() == data
        except FileNotFoundError:
            return False

    def _write(self, path: Path, data: bytes) -> None:
        incoming = self.root / INCOMING
        _make_folder(incoming)
        _make_folder(path.parent)
        aside = incoming / f"{path.name}.{uuid.uuid4().hex}"
        try:
            with open(aside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Parallel writers each rename a whole file of the same bytes: whoever is last, the blob is right.
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            code = error.errno or 0
            raise BlobStoreUnreachable(
                f"the blob folder {self.root} cannot be used: {error.strerror or error}",
                _NEXT_STEPS.get(code, "Check the folder named in ONMODEL_BLOBS__URL and the disk it is on."),
            ) from error


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _make_folder(folder: Path) -> None:
    """Make the folder and its parents, each new entry flushed, so that a power cut does not take the whole shard."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a directory and say so with EINVAL; there is nothing else to do.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
