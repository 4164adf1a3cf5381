"""Finding characters, and references by words and by pictures, through the API with the embedded model's CLIP."""

from __future__ import annotations

import io
import threading
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image
from sqlalchemy import select, update

from asset_store.people import accounts
from asset_store.people.permissions import Action
from asset_store.tables import Character, Reference, ReferenceState, Role
from flows import reading
from studio.client import Client, Patience, Refused, TooMany
from tests.stories import a_campaign, a_character, a_reference, an_asset_in_review
from tests.studio.api.conftest import Door
from tests.studio.making import Studio
from tests.studio_home import EXAMPLES


def picture_file(name: str) -> bytes:
    return (EXAMPLES / "lumen" / name).read_bytes()


def test_references_are_found_by_words_by_a_picture_and_only_where_they_may_be_used(studio: Studio) -> None:
    with Client(studio.address, studio.secret("finder")) as client:
        by_words = client.find_references(text="a green mascot, front view", limit=16)
        assert len(by_words) == 16
        assert [r.likeness for r in by_words] == sorted((r.likeness for r in by_words), reverse=True)
        assert by_words[0].character == "Bo"
        first, second = client.find_references(picture=picture_file("mora/front.png"), limit=2)
        assert (first.key, first.likeness > 0.99, second.likeness < first.likeness) == ("mora/front.png", True, True)
        assert {r.character for r in client.find_references(text="a mascot", character="Pip")} == {"Pip"}
        with studio.store.database.transaction() as session:
            yesterday = datetime.now(UTC).date() - timedelta(days=1)
            session.execute(update(Reference).where(Reference.key == "mora/front.png").values(licence_until=yesterday))
            session.execute(
                update(Reference).where(Reference.key == "mora/side.png").values(state=ReferenceState.WITHDRAWN)
            )
        gone = {"mora/front.png", "mora/side.png"}
        assert not gone & {r.key for r in client.find_references(text="a mascot", limit=100)}
        seen = {r.key: r.problem for r in client.find_references(text="a mascot", usable=False, limit=100)}
        assert gone <= set(seen)
        assert all(seen[key] for key in gone)
        with pytest.raises(Refused) as hostile:
            client.find_references(picture=b"<svg onload=alert(1)>")
        assert hostile.value.problem.kind == "PictureRefused"
        with pytest.raises(Refused):
            client.find_references(picture=b"\x89PNG" * 300_000)
        with pytest.raises(Refused):
            client.find_references(text="")


def test_too_many_searches_at_once_are_told_to_come_again(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_turns", threading.BoundedSemaphore(1))
    monkeypatch.setattr(reading, "WAITS_S", 1.0)
    with Client(studio.address, studio.secret("finder")) as client:
        assert client.find_references(text="a mascot")
        reading._turns.acquire()
        try:
            with Client(studio.address, studio.secret("hasty"), patience=Patience(tries=1)) as hasty:
                with pytest.raises(TooMany) as told:
                    hasty.find_references(text="a mascot")
                assert told.value.retry_after_s == 1
        finally:
            reading._turns.release()


def test_a_large_picture_is_refused_before_it_is_unpacked(door: Door) -> None:
    door.person("olga", Role.VIEWER)
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    answer = door.key("finder", "olga").post("/v1/references/search", files={"picture": file.getvalue()})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:onmodel:problem:PictureRefused")


def test_characters_are_told_with_what_there_is_of_each_where_one_may_see_it(door: Door) -> None:
    with door.session() as session:
        bobo, _ = a_character(session), a_character(session, "Zoe", "secret")
        a_character(session, "Ada")
        for number, ends in enumerate((None, None, datetime.now(UTC).date() - timedelta(days=1))):
            a_reference(session, f"bobo/{number}.png", licence_until=ends).character_id = bobo.id
        campaign = a_campaign(session)
        for _ in range(2):
            an_asset_in_review(session, campaign)
    door.person("olga", Role.PRODUCER, brand="bobo")
    key = door.key("finder", "olga", Action.VIEW)
    first = key.get("/v1/characters?limit=1").json()
    rest = key.get(f"/v1/characters?limit=1&after={first['next_after']}").json()
    assert [c["name"] for c in first["characters"] + rest["characters"]] == ["Ada", "Bobo"]
    assert rest["next_after"] is None
    (told,) = rest["characters"]
    assert (told["references"], told["unusable"]) == ({"identity": 2}, 1)
    with door.session() as session:
        zoe = session.scalars(select(Character.id).where(Character.name == "Zoe")).one()
    assert key.get(f"/v1/characters?after={zoe}").status_code == 404
    assert door.key("mute", "olga", Action.COMMENT).get("/v1/characters").json()["characters"] == []


def test_what_one_may_not_see_is_not_found_by_words(studio: Studio) -> None:
    with studio.store.database.transaction() as session:
        accounts.add_person(session, "sam", "Sam", "system")
        a_reference(session, brand="bobo")
        accounts.grant(session, "sam", Role.PRODUCER, "system", "bobo")
    with Client(studio.address, studio.secret("stranger", "sam")) as client:
        assert client.find_references(text="a mascot", usable=False) == []
        assert list(client.characters(brand="lumen")) == []
