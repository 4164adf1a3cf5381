"""Pictures like one, saved filters, sign-in links and sessions, releases: by /v1, within what the caller may see."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import select

from asset_store import retention
from asset_store.people.permissions import Action
from asset_store.repositories import libraries
from asset_store.retention import Policy
from asset_store.reviewing import decide, similar
from asset_store.tables import Asset, AuditRow, Delivery, Role, Verdict
from tests.stories import a_campaign, a_reference, a_sha256, an_approved_asset, an_asset, an_asset_in_review, picture_of
from tests.studio.api.conftest import Door


def test_only_what_may_be_seen_is_like_a_picture(door: Door) -> None:
    with door.session() as session:
        mine, near = an_asset(session), an_asset(session)
        other = an_asset(session, a_campaign(session, brand="other"))
        reference = a_reference(session)
        libraries.save_encoder(session, a_sha256("clip"), "clip", 2, {})
        vectors = [
            (a.current.sha256, np.array([1, i], dtype=np.float32))
            for i, a in enumerate((mine, near, other))
            if a.current
        ]
        similar.remember(session, a_sha256("clip"), vectors)
        libraries.save_embeddings(
            session, a_sha256("clip"), [(reference.sha256, np.array([1, 0], dtype=np.float32), None)]
        )
    vera, both = door.person("vera", Role.VIEWER, brand="bobo"), door.person("ada", Role.VIEWER)
    found = vera.get(f"/v1/assets/{mine.id}/similar").json()["similar"]
    assert [(f["asset_id"], f["likeness"]) for f in found] == [(str(near.id), 0.7071)]
    assert [f["asset_id"] for f in both.get(f"/v1/assets/{mine.id}/similar").json()["similar"]] == [
        str(near.id),
        str(other.id),
    ]
    assert vera.get(f"/v1/assets/{other.id}/similar").status_code == 404
    ids = [f["asset_id"] for f in vera.get(f"/v1/references/{reference.id}/similar?limit=1").json()["similar"]]
    assert ids == [str(mine.id)]
    assert vera.get(f"/v1/assets/{mine.id}/similar?review=approved").json() == {"similar": []}


def test_saved_filters_are_one_s_own_whatever_they_are_called(door: Door) -> None:
    vera, ada = door.person("vera", Role.VIEWER), door.person("ada", Role.VIEWER)
    body = {"filters": {"review": "in review"}}
    for name in ("to do", "a%2Fb", "%C3%A9"):
        assert vera.put(f"/v1/filters/{name}", json=body).status_code == 200
    assert [f["name"] for f in vera.get("/v1/filters").json()["filters"]] == ["a/b", "to do", "é"]
    assert ada.get("/v1/filters").json() == {"filters": []}
    assert ada.delete("/v1/filters/to do").status_code == 404
    assert [f["name"] for f in vera.delete("/v1/filters/a%2Fb").json()["filters"]] == ["to do", "é"]
    assert vera.put("/v1/filters/x", json={"filters": {"within": "all"}}).status_code == 422


def test_a_link_signs_in_once_and_is_on_record(door: Door) -> None:
    olga = door.person("olga", Role.ADMIN)
    door.person("vera", Role.VIEWER)
    address = olga.post("/v1/people/vera/links").json()["address"]
    token = address.rpartition("#")[2]
    assert door.nobody().post("/v1/sessions", json={"link": token}).json()["actor"] == "vera"
    assert door.nobody().post("/v1/sessions", json={"link": token}).status_code == 401
    assert olga.post("/v1/people/nobody/links").status_code == 404
    with door.session() as session:
        made = session.scalars(select(AuditRow).where(AuditRow.action == "make sign-in link")).all()
        signed_in = session.scalars(select(AuditRow).where(AuditRow.action == "sign in")).all()
    assert ("olga", "vera") in [(row.actor, row.detail["handle"]) for row in made]
    assert ("vera", "olga") in [(row.actor, row.detail["link by"]) for row in signed_in]
    assert all(token not in str(row.detail) for row in made)


def test_all_other_browsers_are_signed_out(door: Door) -> None:
    here, elsewhere, other = door.person("vera", Role.VIEWER), door.person("vera"), door.person("ada", Role.VIEWER)
    assert here.delete("/v1/sessions").json() == {"ended": 1}
    assert [c.get("/v1/me").status_code for c in (here, elsewhere, other)] == [200, 401, 200]
    assert here.delete("/v1/sessions").json() == {"ended": 0}


def approved(door: Door) -> Asset:
    """With a picture that is there."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 90, 160)).save(out, "PNG")
    with door.session() as session:
        return an_approved_asset(session, picture=door.store.blobs.put(out.getvalue(), "image/png"))


def released(client: TestClient, asset: Asset, version: int, key: str = "one", place: str = "web") -> httpx.Response:
    return client.post(
        f"/v1/assets/{asset.id}/releases", json={"place": place}, headers={"If-Match": f'"{version}"', "Idempotency-Key": key}
    )  # fmt: skip


def test_a_release_is_delivered_once(door: Door, tmp_path: Path) -> None:
    asset, lee = approved(door), door.person("lee", Role.RELEASER)
    assert lee.get("/v1/places").json() == {"places": ["web"]}
    version = lee.get(f"/v1/assets/{asset.id}").json()["row_version"]
    assert released(lee, asset, version - 1, "stale").status_code == 412
    first = released(lee, asset, version)
    again = released(lee, asset, version)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert first.json()["availability"] == "released"
    assert released(lee, asset, version, "another key").json() == first.json()  # it went there already
    files = [f for f in (tmp_path / "web").rglob("*") if f.is_file()]
    with door.session() as session:
        rows = session.scalars(select(Delivery)).all()
    assert sorted(str(f) for f in files) == sorted(r.address for r in rows)
    assert {(r.channel, r.by) for r in rows} == {("web", "lee")}


def test_only_places_of_the_settings_are_released_to(door: Door, tmp_path: Path) -> None:
    asset, lee = approved(door), door.person("lee", Role.RELEASER)
    version = lee.get(f"/v1/assets/{asset.id}").json()["row_version"]
    for place in ("elsewhere", str(tmp_path / "other"), "../web"):
        assert released(lee, asset, version, place, place).status_code == 404
    assert not (tmp_path / "other").exists()
    assert released(door.person("grace", Role.REVIEWER), asset, version).status_code == 403
    key = door.key("shop", "lee", Action.RELEASE, Action.VIEW)
    assert released(key, asset, version).status_code == 201


def test_what_is_not_approved_is_delivered_nowhere(door: Door, tmp_path: Path) -> None:
    with door.session() as session:
        asset = an_asset(session)
    lee = door.person("lee", Role.RELEASER)
    answer = released(lee, asset, asset.row_version)
    assert answer.status_code == 409
    assert not (tmp_path / "web").exists()


def test_a_picture_that_was_removed_says_so_wherever_it_is_found(door: Door) -> None:
    later = datetime.now(UTC) + timedelta(days=31)
    with door.session() as session:
        kept, gone = an_asset(session), an_asset_in_review(session)
        decide.decide(session, gone.id, Verdict.REJECT, "grace", "three ears", picture_of(gone))
        libraries.save_encoder(session, a_sha256("clip"), "clip", 2, {})
        vectors = [(picture_of(a), np.array([1, i], dtype=np.float32)) for i, a in enumerate((kept, gone))]
        similar.remember(session, a_sha256("clip"), vectors)
        sha256 = picture_of(gone)
        assert retention.remove(session, [sha256], Policy(30), "flow:sweep", later) == 1
    vera = door.person("vera", Role.VIEWER, Role.BRAND_LEAD)
    for kind in ("pictures", "thumbnails"):
        answer = vera.get(f"/v1/assets/{gone.id}/{kind}/{sha256}")
        assert (answer.status_code, answer.headers["content-type"]) == (410, "application/problem+json")
        assert answer.headers["cache-control"] == "no-store"
        told = answer.json()
        assert told["type"] == "urn:onmodel:problem:PictureRemoved"
        assert f"removed on {later.date().isoformat()} by the retention policy" in told["title"]
    moment = vera.get(f"/v1/assets/{gone.id}").json()["current"]["removed_at"]
    assert datetime.fromisoformat(moment) == later
    listed = {a["id"]: a["current"]["removed_at"] for a in vera.get("/v1/assets").json()["assets"]}
    assert listed == {str(kept.id): None, str(gone.id): moment}
    (near,) = vera.get(f"/v1/assets/{kept.id}/similar").json()["similar"]
    assert (near["asset_id"], near["removed_at"]) == (str(gone.id), moment)
    (version,) = vera.get(f"/v1/assets/{gone.id}/lineage").json()["versions"]
    assert version["removed"]["policy"] == "rejected for 30 days"
    etag = vera.get(f"/v1/assets/{gone.id}").headers["ETag"]
    refused = vera.post(f"/v1/assets/{gone.id}/reopenings", json={"reason": "?"}, headers={"If-Match": etag})
    assert (refused.status_code, "picture was removed" in refused.json()["title"]) == (409, True)
