"""Ingesting a library: what is loaded, what is skipped, what is put aside, and that nothing is lost."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import func, select

from asset_store.errors import LibraryFileInvalid, SourceUnreachable
from asset_store.tables import AuditRow, Embedding, Quarantined, Reference, ReferenceState, RemovedBlob
from flows.library import ingest_library
from flows.wiring import open_store
from tests.prefect_server import PrefectServer
from tests.s3_server import S3Server
from tests.studio_home import Home

pytestmark = pytest.mark.usefixtures("prefect")


def ingest(url: object) -> dict[str, Any]:
    return asyncio.run(ingest_library(str(url), "pat"))


def count(home: Home, table: Any, *where: Any) -> int:
    with home.database.transaction() as session:
        return session.scalars(select(func.count()).select_from(table).where(*where)).one()


def add_to_library(library: Path, key: str, **fields: str) -> None:
    extra = "".join(f", {k}: {v}" for k, v in fields.items())
    with (library / "library.yaml").open("a") as file:
        file.write(f'  - {{file: "{key}", character: Pip, role: identity{extra}}}\n')


def test_every_listed_picture_is_loaded_and_embedded_once(home: Home) -> None:
    report = ingest(home.library)
    assert (report["loaded"], report["embedded"], report["quarantined"]) == (16, 16, [])
    assert count(home, Embedding) == 16
    with open_store() as store:
        with store.database.transaction() as session:
            reference = session.scalars(select(Reference).where(Reference.key == "pip/front.png")).one()
        assert store.blobs.get(reference.sha256) == (home.library / "pip" / "front.png").read_bytes()


def test_a_picture_that_was_put_down_to_be_deleted_is_stored_once_more_with_its_row(home: Home) -> None:
    data = (home.library / "pip" / "front.png").read_bytes()
    with home.database.transaction() as session:
        session.add(RemovedBlob(sha256=hashlib.sha256(data).hexdigest(), deleted_at=datetime.now(UTC)))
    with open_store() as store:
        ingest(home.library)
        assert store.blobs.get(hashlib.sha256(data).hexdigest()) == data
    assert count(home, RemovedBlob) == 0


def test_an_unchanged_library_is_not_read_again(home: Home) -> None:
    ingest(home.library)
    report = ingest(home.library)
    assert (report["loaded"], report["embedded"], report["unchanged"]) == (0, 0, 16)


def test_a_touched_file_with_the_same_bytes_is_embedded_once(home: Home) -> None:
    ingest(home.library)
    picture = home.library / "pip" / "front.png"
    picture.touch()
    report = ingest(home.library)
    assert (report["loaded"], report["embedded"]) == (1, 0)
    assert count(home, Reference) == 16


def test_a_changed_picture_replaces_the_old_one_whose_row_stays(home: Home) -> None:
    ingest(home.library)
    Image.new("RGB", (80, 80), "teal").save(home.library / "pip" / "front.png")
    ingest(home.library)
    assert count(home, Reference, Reference.key == "pip/front.png", Reference.state == ReferenceState.ACTIVE) == 1
    assert count(home, Reference, Reference.key == "pip/front.png", Reference.state == ReferenceState.REMOVED) == 1


def test_bad_files_are_put_aside_with_a_reason_and_the_others_go_on(home: Home) -> None:
    bad = {
        "empty.png": b"",
        "page.png": b"<html><script>alert(1)</script></html>",
        "cut.png": (home.library / "pip" / "front.png").read_bytes()[:900],
        "archive.jpg": b"PK\x03\x04" + b"\0" * 400,
    }
    for key, data in bad.items():
        (home.library / key).write_bytes(data)
        add_to_library(home.library, key)
    add_to_library(home.library, "not-there.png")
    report = ingest(home.library)
    assert report["loaded"] == 16
    assert {q["key"] for q in report["quarantined"]} == {*bad, "not-there.png"}
    assert all(q["reason"] and q["message"] and q["next_step"] for q in report["quarantined"])
    again = ingest(home.library)
    assert (again["loaded"], len(again["quarantined"])) == (0, 5)


def test_a_repaired_file_leaves_quarantine(home: Home) -> None:
    (home.library / "later.png").write_bytes(b"not a picture")
    add_to_library(home.library, "later.png")
    assert len(ingest(home.library)["quarantined"]) == 1
    Image.new("RGB", (64, 64), "orange").save(home.library / "later.png")
    report = ingest(home.library)
    assert (report["loaded"], report["quarantined"]) == (1, [])
    assert count(home, Quarantined) == 0


def test_a_reference_taken_out_of_the_file_is_no_longer_active(home: Home) -> None:
    ingest(home.library)
    file = home.library / "library.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "bo/side.png" not in line))
    report = ingest(home.library)
    assert (report["removed"], report["unlisted"]) == (1, ["bo/side.png"])
    assert count(home, Reference, Reference.key == "bo/side.png", Reference.state == ReferenceState.REMOVED) == 1


def test_a_new_licence_date_reaches_pictures_that_did_not_change(home: Home) -> None:
    ingest(home.library)
    file = home.library / "library.yaml"
    file.write_text(file.read_text().replace("holder: Lumen\n", "holder: Lumen\n  until: 2030-01-31\n"))
    report = ingest(home.library)
    assert report["loaded"] == 0
    with home.database.transaction() as session:
        until = session.scalars(select(Reference.licence_until).where(Reference.key == "pip/front.png")).one()
    assert str(until) == "2030-01-31"


def test_a_prefix_in_s3_is_a_library(home: Home, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONMODEL_S3__ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("ONMODEL_BLOBS__URL", f"s3://{bucket}/store")
    client = s3.client()
    for path in home.library.rglob("*.*"):
        client.upload_file(str(path), bucket, f"brands/lumen/{path.relative_to(home.library).as_posix()}")
    client.put_object(Bucket=bucket, Key="brands/lumen/../outside.png", Body=b"x")
    report = ingest(f"s3://{bucket}/brands/lumen")
    assert (report["loaded"], report["embedded"], report["quarantined"]) == (16, 16, [])
    assert ingest(f"s3://{bucket}/brands/lumen")["unchanged"] == 16
    stored = client.list_objects_v2(Bucket=bucket, Prefix="store/blobs/sha256/")
    assert stored["KeyCount"] == 16


def test_a_broken_library_file_changes_nothing(home: Home) -> None:
    ingest(home.library)
    (home.library / "library.yaml").write_text("brand: {name: lumen}\nreferences: [{file: /etc/passwd}]\n")
    with pytest.raises(LibraryFileInvalid) as caught:
        ingest(home.library)
    assert "library.yaml:2" in str(caught.value)
    assert count(home, Reference, Reference.state == ReferenceState.ACTIVE) == 16


def test_a_folder_without_a_library_file_says_what_to_write(home: Home, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceUnreachable) as caught:
        ingest(empty)
    assert "library.yaml" in caught.value.message


def test_a_run_shows_in_prefect_with_its_report_as_an_artifact(home: Home, prefect: PrefectServer) -> None:
    ingest(home.library)
    runs = prefect.ask("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert runs[0]["state"]["type"] == "COMPLETED"
    artifacts = prefect.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [runs[0]["id"]]}}})
    shown = {a["key"]: a["data"] for a in artifacts}
    assert sorted(shown) == ["ingest-report", "new-references"]
    assert "16 loaded" in shown["ingest-report"]
    picture = base64.b64decode(shown["new-references"].removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(picture)).width > 600
    deadline = time.monotonic() + 120  # the server records task runs a moment after they end
    tasks: set[str] = set()
    while "load from 0" not in tasks and time.monotonic() < deadline:
        found = prefect.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}})
        tasks = {run["name"] for run in found}
        time.sleep(0.1)
    assert "load from 0" in tasks


def test_what_was_done_is_audited(home: Home) -> None:
    ingest(home.library)
    with home.database.transaction() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq)).all()
    assert [(r.actor, r.action) for r in rows] == [("pat", "library loaded"), ("pat", "library ingested")]


def test_one_file_that_may_not_be_read_does_not_stop_the_others(
    home: Home, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object in cold storage answers InvalidObjectState; the rest of the library is loaded."""
    monkeypatch.setenv("ONMODEL_S3__ENDPOINT_URL", s3.endpoint_url)
    client = s3.client()
    for path in home.library.rglob("*.*"):
        key = path.relative_to(home.library).as_posix()
        cold = {"StorageClass": "GLACIER"} if key == "bo/front.png" else {}
        client.put_object(Bucket=bucket, Key=f"lumen/{key}", Body=path.read_bytes(), **cold)
    report = ingest(f"s3://{bucket}/lumen/")
    assert (report["loaded"], [q["reason"] for q in report["quarantined"]]) == (15, ["unreadable"])
