"""Presets and thresholds: versions that only grow, one character and model apart from the other."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.database import Database
from asset_store.repositories import presets
from asset_store.repositories.presets import NewPreset
from asset_store.tables import Character, Encoder, IdentityThreshold, Preset
from tests.stories import a_brand, a_sha256

FOUND = NewPreset(0.8, (0.0, 1.0), {"met": True}, [{"scale": 0.8, "identity": 0.7}], None)
MODELS = a_sha256("models")


def a_character(session: Session, name: str = "Pip") -> Character:
    character = Character(brand_id=a_brand(session).id, name=name)
    session.add(character)
    session.flush()
    return character


def an_encoder(session: Session) -> str:
    session.add(Encoder(sha256=a_sha256("clip"), name="clip", dim=3, preprocessing={}))
    session.flush()
    return a_sha256("clip")


def test_the_same_finding_again_is_no_new_version_and_another_is_the_next(session: Session) -> None:
    pip = a_character(session)
    first, new = presets.save_preset(session, pip, MODELS, FOUND, "pat")
    assert (first.version, new) == (1, True)
    assert presets.save_preset(session, pip, MODELS, FOUND, "rita") == (first, False)
    second, new = presets.save_preset(session, pip, MODELS, replace(FOUND, scale=0.9), "pat")
    assert (second.version, new) == (2, True)
    assert presets.find_preset(session, pip.id, MODELS) == second
    assert [p.version for p, _ in presets.presets(session, [pip.id])] == [2, 1]
    assert audit.verify(session).ok


def test_presets_of_other_characters_and_other_models_stay_apart(session: Session) -> None:
    pip, bo = a_character(session), a_character(session, "Bo")
    presets.save_preset(session, pip, MODELS, FOUND, "pat")
    assert presets.find_preset(session, bo.id, MODELS) is None
    assert presets.find_preset(session, pip.id, a_sha256("others")) is None
    other, _ = presets.save_preset(session, pip, a_sha256("others"), FOUND, "pat")
    assert other.version == 1


def test_what_met_its_target_is_found_behind_what_did_not(session: Session) -> None:
    pip = a_character(session)
    missed = replace(FOUND, scale=0.2, target={"met": False})
    presets.save_preset(session, pip, MODELS, missed, "pat")
    assert presets.find_preset(session, pip.id, MODELS, met=True) is None
    good, _ = presets.save_preset(session, pip, MODELS, FOUND, "pat")
    third, _ = presets.save_preset(session, pip, MODELS, missed, "pat")
    assert presets.find_preset(session, pip.id, MODELS) == third
    assert presets.find_preset(session, pip.id, MODELS, met=True) == good


def test_thresholds_count_their_versions_by_encoder(session: Session) -> None:
    pip, clip = a_character(session), an_encoder(session)
    first, _ = presets.save_threshold(session, pip, clip, 0.5, {"own": [0.9]}, "pat")
    assert presets.save_threshold(session, pip, clip, 0.5, {"own": [0.9]}, "pat") == (first, False)
    second, _ = presets.save_threshold(session, pip, clip, 0.5, {"own": [0.8]}, "pat")
    assert (first.version, second.version) == (1, 2)
    assert presets.find_threshold(session, pip.id, clip) == second


@pytest.mark.parametrize("table", [Preset, IdentityThreshold])
def test_what_was_found_is_never_rewritten(session: Session, table: type[Preset] | type[IdentityThreshold]) -> None:
    pip = a_character(session)
    presets.save_preset(session, pip, MODELS, FOUND, "pat")
    presets.save_threshold(session, pip, an_encoder(session), 0.5, {}, "pat")
    with pytest.raises(DBAPIError, match="append-only"):
        session.execute(update(table).values(made_by="eve"))


def test_two_at_once_get_two_versions(own_database: Database) -> None:
    with own_database.transaction() as session:
        pip = a_character(session)

    def find(scale: float) -> None:
        with own_database.transaction() as session:
            presets.save_preset(session, session.get_one(Character, pip.id), MODELS, replace(FOUND, scale=scale), "pat")

    threads = [threading.Thread(target=find, args=(0.1 * i,)) for i in range(1, 7)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with own_database.transaction() as session:
        assert sorted(session.scalars(select(Preset.version))) == [1, 2, 3, 4, 5, 6]
