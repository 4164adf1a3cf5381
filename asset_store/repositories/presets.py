"""What was found out about a character: how it is best made (presets), and how alike a picture must be (thresholds).

Both are append-only: a new finding is a new version, the highest counts (of presets, the highest that met its target),
and the same finding again changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.canonical import sha256_of
from asset_store.tables import Character, IdentityThreshold, Preset


@dataclass(frozen=True)
class NewPreset:
    """What a search found. `curve`: the measured points; `picture_sha256`: blob of the curve as a PNG."""

    scale: float
    window: tuple[float, float]
    target: Mapping[str, Any]
    curve: Sequence[Mapping[str, Any]]
    picture_sha256: str | None


def find_preset(session: Session, character_id: uuid.UUID, models_sha256: str, *, met: bool = False) -> Preset | None:
    """The latest preset of a character for these models; with `met` the latest of those that met their target."""
    question = select(Preset).where(Preset.character_id == character_id, Preset.models_sha256 == models_sha256)
    if met:
        question = question.where(Preset.target.contains({"met": True}))
    return session.scalar(question.order_by(Preset.version.desc()).limit(1))


def presets(session: Session, character_ids: Collection[uuid.UUID] | None = None) -> list[tuple[Preset, Character]]:
    """All versions with their character, the newest of each first; of all characters unless some are named."""
    question = select(Preset, Character).join(Character, Character.id == Preset.character_id)
    if character_ids is not None:
        question = question.where(Character.id.in_(character_ids))
    rows = session.execute(question.order_by(Character.name, Preset.models_sha256, Preset.version.desc()))
    return [(row[0], row[1]) for row in rows]


def save_preset(
    session: Session, character: Character, models_sha256: str, found: NewPreset, by: str
) -> tuple[Preset, bool]:
    """The preset as the next version, or the latest one where it says the same; True if it is new."""
    _lock(session, character)
    latest = find_preset(session, character.id, models_sha256)
    if latest is not None and _says(latest) == _says(found):
        return latest, False
    row = Preset(
        id=uuid.uuid4(), character_id=character.id, models_sha256=models_sha256,
        version=1 if latest is None else latest.version + 1, scale=found.scale,
        window_start=found.window[0], window_end=found.window[1], target=dict(found.target),
        curve=[dict(p) for p in found.curve], picture_sha256=found.picture_sha256, made_by=by,
    )  # fmt: skip
    session.add(row)
    session.flush()
    detail = {"version": row.version, "scale": row.scale, "window": list(found.window), "models": models_sha256}
    audit.record(session, by, "preset found", f"character {character.id}", detail)
    return row, True


def _says(preset: Preset | NewPreset) -> str:
    window = preset.window if isinstance(preset, NewPreset) else (preset.window_start, preset.window_end)
    return sha256_of([preset.scale, list(window), dict(preset.target), [dict(p) for p in preset.curve]])


# ---------------------------------------------------------------------------- thresholds


def find_threshold(session: Session, character_id: uuid.UUID, encoder_sha256: str) -> IdentityThreshold | None:
    """The latest stored threshold of a character for one encoder."""
    return session.scalar(
        select(IdentityThreshold)
        .where(IdentityThreshold.character_id == character_id, IdentityThreshold.encoder_sha256 == encoder_sha256)
        .order_by(IdentityThreshold.version.desc())
        .limit(1)
    )


def save_threshold(
    session: Session, character: Character, encoder_sha256: str, threshold: float, evidence: Mapping[str, Any], by: str
) -> tuple[IdentityThreshold, bool]:
    """The threshold as the next version, or the latest one where it says the same; True if it is new."""
    _lock(session, character)
    latest = find_threshold(session, character.id, encoder_sha256)
    if latest is not None and sha256_of([latest.threshold, latest.evidence]) == sha256_of([threshold, dict(evidence)]):
        return latest, False
    row = IdentityThreshold(
        id=uuid.uuid4(), character_id=character.id, encoder_sha256=encoder_sha256,
        version=1 if latest is None else latest.version + 1, threshold=threshold, evidence=dict(evidence), made_by=by,
    )  # fmt: skip
    session.add(row)
    session.flush()
    detail = {"version": row.version, "threshold": threshold, "encoder": encoder_sha256}
    audit.record(session, by, "identity threshold calibrated", f"character {character.id}", detail)
    return row, True


def _lock(session: Session, character: Character) -> None:
    """Until the transaction ends no one else counts a version of this character."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"findings of {character.id}", 0))))
