"""Trained models in the ledger: versions, lineage, audit, and what a recall does to them."""

from __future__ import annotations

import threading
from datetime import date
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.database import Database
from asset_store.errors import NotFound, RightsRefused
from asset_store.repositories import models
from asset_store.repositories.models import NewModel
from asset_store.rights.recall import withdraw_reference
from asset_store.tables import AuditRow, Character, ModelKind, ModelReference, Reference, TrainedModel
from tests.stories import TODAY, a_brand, a_reference, a_sha256


def a_character(session: Session, name: str = "Bobo") -> Character:
    character = Character(brand_id=a_brand(session).id, name=name)
    session.add(character)
    session.flush()
    return character


def three_references(session: Session, **fields: Any) -> list[Reference]:
    return [a_reference(session, f"bobo/{n}.png", **fields) for n in ("back", "front", "side")]


def a_training(character: Character, content: str = "weights", **fields: Any) -> NewModel:
    values = {
        "kind": ModelKind.CHARACTER, "name": models.name_of(character), "sha256": a_sha256(content), "size_bytes": 9,
        "base_name": "studio", "base_sha256": a_sha256("unet"), "plan_sha256": a_sha256("plan " + content),
        "settings": {"steps": 500}, "figures": {"seconds": 1.5}, "character_id": character.id,
    }  # fmt: skip
    return NewModel(**{**values, **fields})


def save(session: Session, new: NewModel, references: list[Reference]) -> TrainedModel:
    return models.save_model(session, new, [r.id for r in references], "ada", TODAY)


def test_a_model_is_saved_with_its_references_and_an_audit_row(session: Session) -> None:
    character, references = a_character(session), three_references(session)
    model = save(session, a_training(character), references)
    assert (model.name, model.version) == ("bobo/Bobo", 1)
    assert models.references_of(session, model) == references
    row = session.scalars(select(AuditRow).order_by(AuditRow.seq.desc())).first()
    assert row is not None
    assert (row.action, row.subject, row.actor) == ("model trained", f"model {model.id}", "ada")
    assert row.detail["references"] == sorted(str(r.id) for r in references)
    assert audit.verify(session).broken is None


def test_another_training_is_the_next_version_and_the_newest_counts(session: Session) -> None:
    character, references = a_character(session), three_references(session)
    first = save(session, a_training(character, "one"), references)
    second = save(session, a_training(character, "two"), references)
    assert (first.version, second.version) == (1, 2)
    assert models.get_character_model(session, character, today=TODAY).id == second.id
    assert models.get_character_model(session, character, 1, TODAY).id == first.id
    assert [m.version for m in models.list_models(session)] == [2, 1]


def test_the_same_training_is_recorded_once(session: Session) -> None:
    character, references = a_character(session), three_references(session)
    first = save(session, a_training(character), references)
    assert save(session, a_training(character), references).id == first.id
    assert session.scalar(select(func.count()).select_from(TrainedModel)) == 1
    assert session.scalar(select(func.count()).select_from(ModelReference)) == 3


def test_versions_are_counted_a_character(session: Session) -> None:
    references = three_references(session)
    one, other = a_character(session), a_character(session, "Mora")
    save(session, a_training(one), references)
    assert save(session, a_training(other, "other"), references).version == 1
    with pytest.raises(NotFound, match="version 2"):
        models.get_character_model(session, one, 2, TODAY)


def test_a_character_without_a_model_is_told_how_to_train_one(session: Session) -> None:
    with pytest.raises(NotFound) as caught:
        models.get_character_model(session, a_character(session), today=TODAY)
    assert "onmodel train character bobo/Bobo" in caught.value.next_step


def test_a_recall_of_one_reference_makes_every_model_that_learnt_from_it_unusable(session: Session) -> None:
    character = a_character(session)
    back, front, side = three_references(session)
    save(session, a_training(character, "with"), [back, front, side])
    withdraw_reference(session, front.id, "rita", "contract ended")
    with pytest.raises(RightsRefused, match="bobo/front.png was withdrawn") as caught:
        models.get_character_model(session, character, today=TODAY)
    assert "bobo/Bobo version 1" in str(caught.value)
    assert "onmodel train character" in caught.value.next_step
    other = a_reference(session, "bobo/other.png")
    again = save(session, a_training(character, "without"), [back, side, other])
    assert models.get_character_model(session, character, today=TODAY).id == again.id


def test_a_licence_that_ends_ends_the_model_with_it(session: Session) -> None:
    character = a_character(session)
    references = three_references(session, licence_until=date(2026, 6, 30))
    model = save(session, a_training(character), references)
    models.usable(session, model, date(2026, 6, 30))
    with pytest.raises(RightsRefused, match="ended on 2026-06-30") as caught:
        models.usable(session, model, date(2026, 7, 1))
    assert len(caught.value.problems) == 3


def test_a_model_whose_reference_was_withdrawn_during_the_training_is_not_saved(session: Session) -> None:
    character, references = a_character(session), three_references(session)
    withdraw_reference(session, references[0].id, "rita", "contract ended")
    with pytest.raises(RightsRefused):
        save(session, a_training(character), references)
    assert session.scalar(select(func.count()).select_from(TrainedModel)) == 0


def test_trainings_that_end_at_once_get_versions_of_their_own(own_database: Database) -> None:
    with own_database.transaction() as session:
        character, references = a_character(session), three_references(session)
        ids = [r.id for r in references]
        assert character.brand.name == "bobo"
    failed: list[Exception] = []

    def finish(content: str) -> None:
        try:
            with own_database.transaction() as session:
                models.save_model(session, a_training(character, content), ids, "ada", TODAY)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=finish, args=(f"weights {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with own_database.transaction() as session:
        assert sorted(m.version for m in models.list_models(session)) == [1, 2, 3, 4, 5, 6]
        assert audit.verify(session).broken is None
