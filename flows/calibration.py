"""How alike a picture must be to count as one of a character: calibrated on the library, for each character by itself.

The check's measure is CLIP-I, the mean cosine of a picture to a character's references. The same measure on the library:
each own reference against the other own ones (leave one out, near-duplicates dropped first), and each reference of the
brand's other characters against all own ones. A threshold falsely rejects the own ones below it and falsely accepts the
others at or above it; the share of these counts by character, so that a twin with few references is not outvoted.

The rule: the threshold where the larger of the two shares is smallest (where they are equal, for smooth distributions:
the equal error rate). Where several do as well, as in a gap between the two, the one GAP_SHARE of the way up: references
share a setting, so they are more alike than pictures in new scenes will be, and half-way would refuse right ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from asset_store.library.models import ReferenceRole
from asset_store.repositories import libraries, presets
from asset_store.tables import Brand, Character, Embedding, IdentityThreshold, Reference, ReferenceState
from flows.choosing import RankedReference, ranked_reference, sift, unit
from flows.wiring import Store, engine, open_store

FALLBACK_IDENTITY = 0.5  # CLIP-I below which one cannot speak of the same character, where nothing can be calibrated
GAP_SHARE = 0.25
ENOUGH_REFERENCES = 3  # with two, leaving one out says the same number twice
WORST_ERROR = 0.25  # above this share of errors the references do not tell the character from the others
DIGITS = 4


@dataclass(frozen=True)
class Calibration:
    """A threshold with what it rests on. `told`: the rule that gave it, or why there is only the fallback."""

    threshold: float
    told: str
    evidence: Mapping[str, Any]

    @property
    def calibrated(self) -> bool:
        return bool(self.evidence["calibrated"])


def likenesses(own: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((n,), (m,)): of each own reference (n, d) to the other own ones, of each other's (m, d) to all own ones."""
    mine, theirs = unit(own), unit(others)
    alike = mine @ mine.T
    return (alike.sum(axis=1) - np.diag(alike)) / (len(mine) - 1), (theirs @ mine.T).mean(axis=1)


def errors(own: np.ndarray, others: Sequence[np.ndarray], threshold: float) -> tuple[float, float]:
    """(share of own likenesses falsely rejected, largest share of one character's falsely accepted) at a threshold."""
    return float((own < threshold).mean()), max(float((theirs >= threshold).mean()) for theirs in others)


def balanced(own: np.ndarray, others: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """(threshold, false reject share, false accept share) by the rule of this module, for likenesses (n,) of the own
    references and (m,) of each other character's."""
    values = np.unique(np.concatenate([own, *others]))
    edges = np.concatenate([[values[0] - 0.01], values, [values[-1] + 0.01]])
    above = edges[1:]  # the errors are the same for a threshold anywhere in (edges[i], edges[i + 1]]
    rejected = np.searchsorted(np.sort(own), above) / len(own)
    accepted = np.max([1 - np.searchsorted(np.sort(theirs), above) / len(theirs) for theirs in others], axis=0)
    worst, total = np.maximum(rejected, accepted), rejected + accepted
    first = int(np.lexsort((total, worst))[0])
    last = first
    while last + 1 < len(above) and (worst[last + 1], total[last + 1]) == (worst[first], total[first]):
        last += 1
    low, high = float(edges[first]), float(edges[last + 1])
    threshold = low + GAP_SHARE * (high - low)
    return threshold, *errors(own, others, threshold)


def calibrate(own: np.ndarray, others: Mapping[str, np.ndarray]) -> Calibration:
    """The threshold of a character with references `own` (n, d) in a brand with `others`, (m, d) by their names."""
    count = {"own": len(own), "others": {name: len(rows) for name, rows in sorted(others.items())}}
    if len(own) < ENOUGH_REFERENCES:
        return _fallback(f"it has {len(own)} references, and {ENOUGH_REFERENCES} are needed to calibrate", count)
    if not any(len(rows) for rows in others.values()):
        return _fallback("the brand has no other character to tell it from", count)
    names = sorted(n for n, rows in others.items() if len(rows))
    mine, _ = likenesses(own, own)
    theirs = {n: likenesses(own, others[n])[1] for n in names}
    threshold, rejected, accepted = balanced(mine, list(theirs.values()))
    nearest = max(names, key=lambda n: float(theirs[n].max()))
    taken_for = max(names, key=lambda n: (errors(mine, [theirs[n]], threshold)[1], float(theirs[n].max())))
    evidence = {
        "references": count,
        "own": _rounded(mine),
        "others": {n: _rounded(theirs[n]) for n in names},
        "nearest_other": {"character": nearest, "likeness": round(float(theirs[nearest].max()), DIGITS)},
        "most_accepted": taken_for,
        "false_reject": round(rejected, DIGITS),
        "false_accept": round(accepted, DIGITS),
        "gap_share": GAP_SHARE,
    }
    if max(rejected, accepted) > WORST_ERROR:
        why = f"its references do not tell it from {taken_for}: {max(rejected, accepted):.0%} errors at best"
        return _fallback(why, count, evidence)
    told = f"false reject {rejected:.0%}, false accept {accepted:.0%} on the library; nearest other {nearest}"
    value = round(max(0.0, threshold), DIGITS)
    return Calibration(value, told, {**evidence, "calibrated": True, "rule": "balanced errors", "told": told})


def _fallback(why: str, count: Mapping[str, Any], evidence: Mapping[str, Any] | None = None) -> Calibration:
    told = f"not calibrated: {why}"
    known = {**(evidence or {"references": dict(count)}), "calibrated": False, "rule": "fallback", "told": told}
    return Calibration(FALLBACK_IDENTITY, told, known)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), DIGITS) for v in values]


# ---------------------------------------------------------------------------- of the library


@dataclass(frozen=True)
class Evidence:
    """What the library has to calibrate a character on: its own references, those of the brand's other characters
    (m, d) by their names, and the threshold that is stored, if there is one."""

    character: str
    own: tuple[RankedReference, ...]
    others: Mapping[str, np.ndarray]
    stored: IdentityThreshold | None

    def single(self) -> np.ndarray:
        """(n, d): the own references without near-duplicates, which would speak for each other where one is left out.
        Pictures are read from the blob store to compare them, which needs no transaction."""
        sifted = sift(self.own)
        kept = [r.embedding for i, r in enumerate(sifted.order) if i not in sifted.twins]
        return np.stack(kept) if kept else np.zeros((0, 1))


def find_evidence(session: Session, store: Store, character: Character, encoder: str, on: date) -> Evidence:
    """Of identity references that may be used on that day, as the encoder of this sha256 sees them."""
    rows = session.execute(
        select(Character.id, Character.name, Reference, Embedding.pooled)
        .join(Character, Character.id == Reference.character_id)
        .join(Embedding, Embedding.reference_sha256 == Reference.sha256)
        .where(Character.brand_id == character.brand_id, Embedding.encoder_sha256 == encoder)
        .where(Reference.state == ReferenceState.ACTIVE, Reference.role == ReferenceRole.IDENTITY)
        .where(or_(Reference.licence_until.is_(None), Reference.licence_until >= on))
        .order_by(Reference.key, Reference.sha256)
    ).all()
    groups: dict[str, dict[str, np.ndarray]] = {}
    own: dict[str, RankedReference] = {}
    for owner, name, row, pooled in rows:  # the same picture at two keys is one picture
        if owner == character.id:
            own.setdefault(row.sha256, ranked_reference(store, row, pooled))
        else:
            groups.setdefault(name, {})[row.sha256] = np.asarray(pooled, dtype=np.float32)
    others = {name: np.stack(list(group.values())) for name, group in groups.items()}
    stored = presets.find_threshold(session, character.id, encoder)
    return Evidence(character.name, tuple(own.values()), others, stored)


@dataclass(frozen=True)
class Threshold:
    """What the identity check of a character asks for. `version` None: calibrated now, not stored.

    references (n, d): those that the threshold was calibrated with, so that the picture's mean likeness to them is the
    measure; None where it is only the fallback.
    """

    value: float
    version: int | None
    told: str
    references: np.ndarray | None = None


def threshold_from(evidence: Evidence) -> Threshold:
    """The stored threshold, else one calibrated on the library as it is now. Reads pictures: outside of a transaction."""
    own = evidence.single()
    if (stored := evidence.stored) is not None:
        told = f"threshold version {stored.version} of {evidence.character}"
        known = bool(stored.evidence.get("calibrated")) and len(own) > 0
        return Threshold(stored.threshold, stored.version, told, own if known else None)
    now = calibrate(own, evidence.others)
    how = "calibrated now" if now.calibrated else now.told
    return Threshold(now.threshold, None, f"threshold {how}, not stored", own if now.calibrated else None)


def store_calibrations(name: str | None, *, brand: str | None, by: str) -> list[dict[str, Any]]:
    """`onmodel calibrate`: calibrate one character, or all with name None, and store what is new."""
    with open_store() as store:
        with store.database.transaction() as session:  # nobody waits for the engine to hear of a name that there is not
            if name is not None:
                libraries.find_character(session, name, brand)
        encoder, today = engine(store.settings).encoder.sha256, datetime.now(UTC).date()
        with store.database.transaction() as session:
            if name is not None:
                characters = [libraries.find_character(session, name, brand)]
            else:
                question = select(Character).join(Brand).order_by(Brand.name, Character.name)
                characters = list(session.scalars(question if brand is None else question.where(Brand.name == brand)))
            evidence = [find_evidence(session, store, c, encoder, today) for c in characters]
        found = [calibrate(e.single(), e.others) for e in evidence]
        with store.database.transaction() as session:
            return [_saved(session, c, encoder, f, by) for c, f in zip(characters, found, strict=True)]


def _saved(session: Session, character: Character, encoder: str, found: Calibration, by: str) -> dict[str, Any]:
    row, new = presets.save_threshold(session, character, encoder, found.threshold, found.evidence, by)
    return {
        "brand": character.brand.name,
        "character": character.name,
        "threshold": row.threshold,
        "version": row.version,
        "new": new,
        "calibrated": found.calibrated,
        "told": found.told,
        "evidence": dict(found.evidence),
    }
