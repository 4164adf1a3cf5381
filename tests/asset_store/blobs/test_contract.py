"""What every blob store promises, held against the folder and against S3."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from asset_store.blobs import BlobStore, FolderBlobs, S3Blobs, blob_key, open_blobs
from asset_store.blobs.s3_client import S3Place
from asset_store.errors import BlobCorrupt, BlobMissing, BlobStoreUnreachable, NotASha256, PlaceInvalid
from tests.s3_server import S3Server

ABSENT = hashlib.sha256(b"never stored").hexdigest()


@dataclass(frozen=True)
class Stored:
    """A store, and a hand that can write past it."""

    blobs: BlobStore
    write_raw: Callable[[str, bytes], None]


@pytest.fixture(params=["folder", "s3"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Stored:
    if request.param == "folder":

        def write_file(key: str, data: bytes) -> None:
            path = tmp_path / "house" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        return Stored(open_blobs(str(tmp_path / "house")), write_file)
    server: S3Server = request.getfixturevalue("s3")
    bucket: str = request.getfixturevalue("bucket")
    client = server.client()

    def write_object(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=f"some/prefix/{key}", Body=data)

    return Stored(open_blobs(f"s3://{bucket}/some/prefix/", endpoint_url=server.endpoint_url), write_object)


@pytest.fixture
def blobs(stored: Stored) -> BlobStore:
    return stored.blobs


@pytest.mark.parametrize("size", [0, 1, 1023, 65_537, 16 * 1024 * 1024, 20 * 1024 * 1024 + 1])
def test_what_was_put_is_got(blobs: BlobStore, size: int) -> None:
    data = os.urandom(size)
    assert blobs.get(blobs.put(data, "image/png")) == data


def test_a_blob_is_named_by_its_sha256(blobs: BlobStore) -> None:
    assert blobs.put(b"a picture") == hashlib.sha256(b"a picture").hexdigest()


@pytest.mark.parametrize("size", [10, 17 * 1024 * 1024])
def test_putting_twice_is_putting_once(blobs: BlobStore, size: int) -> None:
    data = bytes(size)
    assert blobs.put(data) == blobs.put(data)
    assert list(blobs.iter_keys()) == [hashlib.sha256(data).hexdigest()]


def test_parallel_writers_of_one_blob_leave_it_whole(blobs: BlobStore) -> None:
    data = os.urandom(200_000)
    with ThreadPoolExecutor(8) as writers:
        names = set(writers.map(blobs.put, [data] * 24))
    assert [blobs.get(name) for name in names] == [data]


def test_a_reader_beside_writers_sees_nothing_or_the_whole(blobs: BlobStore) -> None:
    data = os.urandom(300_000)
    name = hashlib.sha256(data).hexdigest()

    def read(_: int) -> bytes:
        try:
            return blobs.get(name)
        except BlobMissing:
            return data

    with ThreadPoolExecutor(8) as pool:
        writing = [pool.submit(blobs.put, data) for _ in range(8)]
        assert set(pool.map(read, range(24))) == {data}
        assert {written.result() for written in writing} == {name}


@pytest.mark.parametrize("damaged", [b"", b"a pictur", b"A picture", b"a picture and more"])
def test_damage_is_told_on_reading(stored: Stored, damaged: bytes) -> None:
    name = stored.blobs.put(b"a picture")
    stored.write_raw(blob_key(name), damaged)
    with pytest.raises(BlobCorrupt) as caught:
        stored.blobs.get(name)
    assert (caught.value.key, caught.value.expected) == (blob_key(name), name)
    assert caught.value.found == hashlib.sha256(damaged).hexdigest()


@pytest.mark.parametrize("damaged", [b"", b"a pictur", b"A picture", b"a picture and more"])
def test_a_put_repairs_damage(stored: Stored, damaged: bytes) -> None:
    name = stored.blobs.put(b"a picture")
    stored.write_raw(blob_key(name), damaged)
    stored.blobs.put(b"a picture")
    assert stored.blobs.get(name) == b"a picture"


def test_a_put_repairs_damage_of_a_large_blob(stored: Stored) -> None:
    data = os.urandom(17 * 1024 * 1024)
    name = stored.blobs.put(data)
    stored.write_raw(blob_key(name), data[::-1])
    stored.blobs.put(data)
    assert stored.blobs.get(name) == data


def test_an_unknown_blob_is_missing(blobs: BlobStore) -> None:
    with pytest.raises(BlobMissing) as caught:
        blobs.get(ABSENT)
    assert caught.value.sha256 == ABSENT
    assert caught.value.next_step


def test_has_tells_what_is_there(blobs: BlobStore) -> None:
    assert blobs.has(blobs.put(b"here"))
    assert not blobs.has(ABSENT)


def test_a_deleted_blob_is_gone_and_deleting_again_is_no_error(blobs: BlobStore) -> None:
    name = blobs.put(b"soon gone")
    blobs.delete(name)
    blobs.delete(name)
    assert not blobs.has(name)


@pytest.mark.parametrize("name", ["", "abc", ABSENT.upper(), "../" * 20 + "etc/passwd", ABSENT + "\n", "z" * 64])
@pytest.mark.parametrize("method", ["get", "has", "delete"])
def test_what_is_no_sha256_is_refused(blobs: BlobStore, method: str, name: str) -> None:
    with pytest.raises(NotASha256):
        getattr(blobs, method)(name)


def test_keys_are_all_listed_in_order(blobs: BlobStore) -> None:
    names = [blobs.put(str(number).encode()) for number in range(40)]
    assert list(blobs.iter_keys()) == sorted(names)


def test_a_listing_goes_on_past_one_page(stored: Stored) -> None:
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(1_050)]
    with ThreadPoolExecutor(4) as writers:
        list(writers.map(lambda name: stored.write_raw(blob_key(name), b""), names))
    assert list(stored.blobs.iter_keys()) == sorted(names)


def test_an_empty_store_lists_nothing(blobs: BlobStore) -> None:
    assert list(blobs.iter_keys()) == []


@pytest.mark.parametrize(
    "stray",
    ["blobs/sha256/ab/notes.txt", f"blobs/sha256/00/{ABSENT}", "blobs/sha256/stray", f"blobs/incoming/{ABSENT}"],
)
def test_what_is_no_blob_is_not_listed(stored: Stored, stray: str) -> None:
    name = stored.blobs.put(b"a blob")
    stored.write_raw(stray, b"stray")
    assert list(stored.blobs.iter_keys()) == [name]


def test_check_passes_and_leaves_nothing(blobs: BlobStore) -> None:
    blobs.check()
    assert list(blobs.iter_keys()) == []


def test_a_store_says_where_it_is(stored: Stored, tmp_path: Path) -> None:
    said = stored.blobs.describe()
    assert said == str(tmp_path / "house") or "/some/prefix at 127.0.0.1:" in said


def test_an_object_is_stored_with_its_type_and_checksum(s3: S3Server, bucket: str) -> None:
    blobs = S3Blobs(S3Place(bucket, ""), endpoint_url=s3.endpoint_url)
    name = blobs.put(b"a picture", "image/png")
    head = s3.client().head_object(Bucket=bucket, Key=blob_key(name), ChecksumMode="ENABLED")
    assert head["ContentType"] == "image/png"
    assert head["Metadata"] == {"sha256": name}


@pytest.mark.parametrize("url", ["", "  ", "s3://", "s3:///prefix", "gs://bucket/x", "https://host/x"])
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(PlaceInvalid):
        open_blobs(url)


@pytest.mark.parametrize("call", ["check", "has", "get", "list"])
def test_a_missing_bucket_is_told_with_the_next_step(s3: S3Server, call: str) -> None:
    blobs = open_blobs("s3://no-such-bucket-here", endpoint_url=s3.endpoint_url)
    calls: dict[str, Callable[[], object]] = {
        "check": blobs.check,
        "has": lambda: blobs.has(ABSENT),
        "get": lambda: blobs.get(ABSENT),
        "list": lambda: list(blobs.iter_keys()),
    }
    with pytest.raises(BlobStoreUnreachable, match="no bucket 'no-such-bucket-here'") as caught:
        calls[call]()
    assert "Create the bucket" in caught.value.next_step


def test_missing_credentials_are_told(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(BlobStoreUnreachable, match="no usable credentials") as caught:
        open_blobs(f"s3://{bucket}", endpoint_url=s3.endpoint_url).check()
    assert "AWS_ACCESS_KEY_ID" in caught.value.next_step


def test_a_file_in_the_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BlobStoreUnreachable, match="file") as caught:
        FolderBlobs(tmp_path / "file").check()
    assert caught.value.next_step


def test_an_endpoint_is_described_without_its_password() -> None:
    blobs = open_blobs("s3://bucket/x", endpoint_url="http://user:secret@127.0.0.1:9", region="eu-west-1")
    assert blobs.describe() == "s3://bucket/x at 127.0.0.1:9"


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BlobCorrupt("blobs/sha256/ab/x", "ab", "cd")))
    assert (type(error), error.key, error.found, bool(error.next_step)) == (
        BlobCorrupt,
        "blobs/sha256/ab/x",
        "cd",
        True,
    )
