"""Trained models in the ledger: versions, what they learnt from, and whether they may still be used."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import NotFound, RightsRefused
from asset_store.rights import licences
from asset_store.tables import Character, ModelKind, ModelReference, Reference, TrainedModel

MODELS_LOCK = 0x6D6F64656C73  # "models": two trainings that end at once get two versions


@dataclass(frozen=True)
class NewModel:
    """A training's result on its way into the ledger; its blob is stored before.

    plan_sha256: of all that determined the training, so that the same training is recorded once.
    """

    kind: ModelKind
    name: str
    sha256: str
    size_bytes: int
    base_name: str
    base_sha256: str
    plan_sha256: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)
    character_id: uuid.UUID | None = None


def name_of(character: Character) -> str:
    """What a character's model goes by: `brand/character`."""
    return f"{character.brand.name}/{character.name}"


def save_model(
    session: Session, new: NewModel, reference_ids: Collection[uuid.UUID], by: str, on: date
) -> TrainedModel:
    """Insert the next version with its references and an audit row, in the caller's one transaction.

    Safe to repeat: the same training, known by its plan and its bytes, is the version that is there already.
    Raises RightsRefused where a reference was withdrawn, or its licence ended, while the model was trained.
    """
    licences.check_usable(session, reference_ids, on)
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MODELS_LOCK})
    known = find_planned(session, new.kind, new.name, new.plan_sha256)
    if known is not None and known.sha256 == new.sha256:
        return known
    last = select(func.max(TrainedModel.version)).where(TrainedModel.kind == new.kind, TrainedModel.name == new.name)
    model = TrainedModel(
        id=uuid.uuid4(), kind=new.kind, name=new.name, version=(session.scalar(last) or 0) + 1,
        character_id=new.character_id, sha256=new.sha256, size_bytes=new.size_bytes, base_name=new.base_name,
        base_sha256=new.base_sha256, settings={**new.settings, "plan_sha256": new.plan_sha256},
        figures=dict(new.figures), made_by=by,
    )  # fmt: skip
    session.add(model)
    session.flush()
    session.add_all([ModelReference(model_id=model.id, reference_id=id_) for id_ in sorted(reference_ids)])
    session.flush()
    detail = {"kind": model.kind.value, "name": model.name, "version": model.version, "sha256": model.sha256,
              "base_sha256": model.base_sha256, "references": [str(i) for i in sorted(reference_ids)]}  # fmt: skip
    audit.record(session, by, "model trained", f"model {model.id}", detail)
    return model


def find_planned(session: Session, kind: ModelKind, name: str, plan_sha256: str) -> TrainedModel | None:
    """The newest version that this very training has made before, if any."""
    return session.scalars(
        select(TrainedModel)
        .where(
            TrainedModel.kind == kind,
            TrainedModel.name == name,
            TrainedModel.settings["plan_sha256"].astext == plan_sha256,
        )
        .order_by(TrainedModel.version.desc())
    ).first()


def references_of(session: Session, model: TrainedModel) -> list[Reference]:
    """What a model learnt from, in the order of the keys."""
    learnt = select(ModelReference.reference_id).where(ModelReference.model_id == model.id)
    return list(
        session.scalars(
            select(Reference)
            .where(Reference.id.in_(learnt))
            .order_by(Reference.key, Reference.id)
            .execution_options(populate_existing=True)
        )
    )


def usable(session: Session, model: TrainedModel, today: date) -> None:
    """RightsRefused, naming the references, where a model learnt from one that may not be used on that day."""
    problems = [p for r in references_of(session, model) if (p := licences.problem_of(r, today)) is not None]
    if problems:
        refused = RightsRefused([f"model {model.name} version {model.version} learnt from it: {p}" for p in problems])
        refused.next_step = f"Train it again on the references that are left: onmodel train character {model.name}"
        raise refused


def get_character_model(
    session: Session, character: Character, version: int | None = None, today: date | None = None
) -> TrainedModel:
    """The model of a character: that version, else the newest. Raises NotFound, or RightsRefused as `usable` does.

    A newest version that may not be used is not passed over for an older one: that is for a person to decide.
    """
    asked = select(TrainedModel).where(
        TrainedModel.kind == ModelKind.CHARACTER, TrainedModel.character_id == character.id
    )
    if version is not None:
        asked = asked.where(TrainedModel.version == version)
    model = session.scalars(asked.order_by(TrainedModel.version.desc())).first()
    name = name_of(character)
    if model is None:
        what = "trained model of" if version is None else f"version {version} of the trained model of"
        raise NotFound(what, name, f"Train one: onmodel train character {name}; `onmodel train list` shows all.")
    usable(session, model, today or datetime.now(UTC).date())
    return model


def list_models(session: Session) -> Sequence[TrainedModel]:
    """All models by kind and name, the newest version first."""
    asked = select(TrainedModel).order_by(TrainedModel.kind, TrainedModel.name, TrainedModel.version.desc())
    return session.scalars(asked).all()
