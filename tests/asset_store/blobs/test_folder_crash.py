"""A writer that is killed leaves either the whole blob or none."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asset_store.blobs import FolderBlobs

WRITER = """
import os, sys
from pathlib import Path
from asset_store.blobs import FolderBlobs
blobs = FolderBlobs(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    blobs.put(os.urandom(2_000_000))
"""

DIES_BEFORE_RENAME = """
import os, sys
from pathlib import Path
from asset_store.blobs import FolderBlobs
os.replace = lambda *paths: os._exit(9)
FolderBlobs(Path(sys.argv[1])).put(b"half" * 1000)
"""

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("lived_s", [0.05, 0.13, 0.21])
def test_every_blob_that_a_killed_writer_left_is_whole(tmp_path: Path, lived_s: float) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    time.sleep(lived_s)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    blobs = FolderBlobs(tmp_path)
    for name in blobs.iter_keys():
        assert len(blobs.get(name)) == 2_000_000


@pytest.fixture
def left_by_the_dead(tmp_path: Path) -> FolderBlobs:
    """A folder in which a writer died after writing and before renaming."""
    command = [sys.executable, "-c", DIES_BEFORE_RENAME, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    return FolderBlobs(tmp_path)


def test_a_blob_not_yet_renamed_is_not_there(left_by_the_dead: FolderBlobs) -> None:
    assert not left_by_the_dead.has(hashlib.sha256(b"half" * 1000).hexdigest())
    assert list(left_by_the_dead.iter_keys()) == []


def test_the_next_writer_is_not_hindered(left_by_the_dead: FolderBlobs) -> None:
    assert left_by_the_dead.get(left_by_the_dead.put(b"half" * 1000)) == b"half" * 1000


def test_leftovers_are_removed_once_they_are_old(left_by_the_dead: FolderBlobs) -> None:
    assert left_by_the_dead.remove_leftovers(older_than_s=3600) == 0
    assert left_by_the_dead.remove_leftovers(older_than_s=0) == 1
    assert left_by_the_dead.remove_leftovers(older_than_s=0) == 0
