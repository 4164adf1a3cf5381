"""A library is listed and read the same from a folder and from S3, whatever its files are called."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from asset_store.errors import (
    PlaceInvalid,
    SourceKeyRefused,
    SourceObjectMissing,
    SourceObjectTooBig,
    SourceUnreachable,
)
from asset_store.library import LibrarySource, open_source, safe_key
from tests.s3_server import S3Server


@dataclass(frozen=True)
class Place:
    """A library, and a hand that puts files into it."""

    source: LibrarySource
    write: Callable[[str, bytes], None]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        root = tmp_path / "library"
        root.mkdir()

        def write_file(key: str, data: bytes) -> None:
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(data)

        return Place(open_source(str(root)), write_file)
    server: S3Server = request.getfixturevalue("s3")
    bucket: str = request.getfixturevalue("bucket")
    client = server.client()
    client.put_object(Bucket=bucket, Key="library-of-another/x.png", Body=b"not ours")
    client.put_object(Bucket=bucket, Key="library", Body=b"not ours")
    return Place(
        open_source(f"s3://{bucket}/library", server.endpoint_url),
        lambda key, data: client.put_object(Bucket=bucket, Key=f"library/{key}", Body=data) and None,
    )


ODD_KEYS = [
    "plain.png",
    "deep/er/and deeper/x.png",
    "caf\u00e9.png",
    "cafe\u0301.png",
    "gnp\u202egpj.exe",
    "red\x1b[31m.png",
    "back\\slash.png",
    "...",
    "a..b/c",
    "100%25&+?#=.png",
    "\U0001f98a.png",
]


def test_keys_are_listed_as_they_are(place: Place) -> None:
    for key in ODD_KEYS:
        place.write(key, b"data")
    assert [found.key for found in place.source.list()] == sorted(ODD_KEYS)


@pytest.mark.parametrize("key", ODD_KEYS, ids=safe_key)
def test_what_is_listed_is_read(place: Place, key: str) -> None:
    place.write(key, key.encode())
    assert [place.source.read(found.key) for found in place.source.list()] == [key.encode()]


def test_a_listing_tells_size_and_an_etag_that_follows_the_content(place: Place) -> None:
    place.write("x.png", b"one")
    (before,) = place.source.list()
    place.write("x.png", b"other")
    (after,) = place.source.list()
    assert (before.size, after.size) == (3, 5)
    assert before.etag != after.etag


def test_an_empty_library_lists_nothing(place: Place) -> None:
    assert place.source.list() == []


def test_a_listing_goes_on_past_one_page(place: Place) -> None:
    keys = [f"{number:04}.png" for number in range(1_010)]
    with ThreadPoolExecutor(4) as writers:
        list(writers.map(lambda key: place.write(key, b""), keys))
    assert [found.key for found in place.source.list()] == keys


def test_an_object_at_the_limit_is_read_and_one_over_it_is_not(place: Place) -> None:
    place.write("x.png", b"12345")
    assert place.source.read("x.png", max_bytes=5) == b"12345"
    with pytest.raises(SourceObjectTooBig) as caught:
        place.source.read("x.png", max_bytes=4)
    assert (caught.value.size_bytes, caught.value.max_bytes) == (5, 4)


@pytest.mark.parametrize("key", ["none.png", "x.png/below", "deep/none.png"])
def test_a_missing_object_is_told(place: Place, key: str) -> None:
    place.write("x.png", b"data")
    with pytest.raises(SourceObjectMissing):
        place.source.read(key)


def test_an_empty_key_is_refused(place: Place) -> None:
    with pytest.raises(SourceKeyRefused):
        place.source.read("")


def test_folder_markers_in_s3_are_not_files(s3: S3Server, bucket: str) -> None:
    for key in ("library/", "library/mara/"):
        s3.client().put_object(Bucket=bucket, Key=key, Body=b"")
    assert open_source(f"s3://{bucket}/library", s3.endpoint_url).list() == []


def test_a_missing_bucket_is_told(s3: S3Server) -> None:
    with pytest.raises(SourceUnreachable, match="no bucket 'nowhere-at-all'"):
        open_source("s3://nowhere-at-all/x", s3.endpoint_url).list()


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        open_source(str(tmp_path / "none")).list()
    assert caught.value.next_step


@pytest.mark.parametrize("url", ["", "s3://", "ftp://host/x"])
def test_a_url_of_no_library_is_refused(url: str) -> None:
    with pytest.raises(PlaceInvalid):
        open_source(url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A library with a secret beside it."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "deep.png").write_bytes(b"secret")
    root = tmp_path / "library"
    (root / "inside").mkdir(parents=True)
    (root / "inside" / "x.png").write_bytes(b"data")
    return root


@pytest.mark.parametrize(
    "key", ["../secret.png", "inside/../../secret.png", "/etc/passwd", "x\0.png", "out.png", "out/deep.png"]
)
def test_a_key_that_leads_out_of_the_folder_is_refused(folder: Path, key: str) -> None:
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "out").symlink_to(folder.parent / "outside")
    with pytest.raises(SourceKeyRefused):
        open_source(str(folder)).read(key)


@pytest.mark.parametrize("target", ["../secret.png", "../outside", "inside", "none", "link.png", "."])
def test_links_out_to_folders_to_nothing_and_in_circles_are_not_listed(folder: Path, target: str) -> None:
    (folder / "link.png").symlink_to(target)
    assert [found.key for found in open_source(str(folder)).list()] == ["inside/x.png"]


def test_a_link_to_a_file_inside_is_a_file(folder: Path) -> None:
    (folder / "again.png").symlink_to("inside/x.png")
    source = open_source(str(folder))
    assert [(found.key, source.read(found.key)) for found in source.list()] == [
        ("again.png", b"data"),
        ("inside/x.png", b"data"),
    ]


@pytest.mark.timeout(10)
def test_a_pipe_is_neither_listed_nor_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    source = open_source(str(folder))
    assert [found.key for found in source.list()] == ["inside/x.png"]
    with pytest.raises(SourceKeyRefused):
        source.read("pipe.png")


def test_a_name_of_two_lines_is_listed_and_read(folder: Path) -> None:
    """In a folder only: the test server has no route for such a key, though S3 itself takes it."""
    (folder / "two\nlines.png").write_bytes(b"odd")
    source = open_source(str(folder))
    assert [source.read(found.key) for found in source.list() if "\n" in found.key] == [b"odd"]


def test_a_name_longer_than_any_file_has_is_missing(folder: Path) -> None:
    with pytest.raises(SourceObjectMissing):
        open_source(str(folder)).read("a" * 3_000)


def test_a_folders_etag_is_its_time_and_size(folder: Path) -> None:
    (found,) = open_source(str(folder)).list()
    assert found.etag == f"{(folder / 'inside/x.png').stat().st_mtime_ns}-4"


def test_a_name_that_is_no_utf8_is_listed_and_read(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(b"odd")
    source = open_source(str(folder))
    key = next(found.key for found in source.list() if found.size == 3)
    assert source.read(key) == b"odd"
    assert safe_key(key) == "\\udcff\\udcfe.png"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("caf\u00e9.png", "caf\u00e9.png"),
        ("cafe\u0301.png", "cafe\\u0301.png"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u200bb", "a\\u200bb"),
        ("a\nb\x1b[0m", "a\\nb\\x1b[0m"),
        ("a\u2028b\u00a0c", "a\\u2028b\\xa0c"),
        ("a\\nb", "a\\\\nb"),
    ],
)
def test_a_key_is_shown_without_disguise(key: str, shown: str) -> None:
    assert safe_key(key) == shown
