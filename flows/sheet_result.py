"""What came of a character sheet: its cells with checks and tries, how alike they are, and the sheet as PNG, PDF and JSON."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from asset_store.canonical import canonical_json
from asset_store.repositories import libraries
from asset_store.reviewing.states import ReviewState
from asset_store.rights.licences import problem_of
from asset_store.tables import Asset, AssetVersion, CheckOutcome, LineageRecord, PictureEmbedding, Reference, Run
from flows.loading import picture_of
from flows.sheet_drawing import Cell, Section, SheetContent, Swatch, draw_pdf, draw_png
from flows.sheet_request import SECTIONS, SheetCell, SheetRequest, request_of
from flows.wiring import Store

MOST_REFERENCES = 8
OFF = (ReviewState.CHECK_FAILED, ReviewState.DRAFT)  # a draft with a version waits for another one


@dataclass(frozen=True)
class Alike:
    """consistency: the mean cosine similarity of all pairs of pictures, by their CLIP embeddings; None for fewer than two.

    each: by cell, its mean similarity to the others.
    """

    consistency: float | None
    each: dict[int, float]


def alike(vectors: dict[int, np.ndarray]) -> Alike:
    """vectors: by cell, (d,) float32 of any length but 0."""
    if len(vectors) < 2:
        return Alike(None, {})
    unit = np.stack([v / np.linalg.norm(v) for v in vectors.values()]).astype(np.float64)
    likeness = unit @ unit.T
    others = (likeness.sum(1) - 1.0) / (len(unit) - 1)
    return Alike(round(float(others.mean()), 4), {k: round(float(v), 4) for k, v in zip(vectors, others, strict=True)})


@dataclass(frozen=True)
class SheetFiles:
    """A sheet's files as they were stored: by sha256, each with its media type."""

    stored: dict[str, tuple[bytes, str]]

    def put(self, store: Store, sha256: str) -> None:
        store.blobs.put(*self.stored[sha256])


def conclude_sheet(store: Store, run_id: uuid.UUID, encoder_sha256: str) -> tuple[dict[str, Any], SheetFiles]:
    """Draw the sheet of a run whose pictures are made, as far as they are, and store it: the run's result, and the files that it names."""
    with store.database.transaction() as session:
        run = session.get_one(Run, run_id)
        request, brand = request_of(run.request), run.brand
        character = libraries.get_character(session, brand, request.character)
        assets = _assets(session, run.campaign_id)
        found = {i: assets.get(cell.shot) for i, cell in enumerate(request.cells)}
        pictures = {i: a.current.sha256 for i, a in found.items() if a is not None and a.current is not None}
        likeness = alike(_vectors(session, _distinct(pictures), encoder_sha256))
        references = _references(session, [a for a in found.values() if a is not None])
        cells = [_told(cell, found[i], likeness.each.get(i)) for i, cell in enumerate(request.cells)]
        palette = [str(colour) for colour in character.palette]
        day = datetime.now(UTC).date().isoformat()
        title, brand_title = character.name, brand.title or brand.name
    told: dict[str, Any] = {
        "run": str(run_id), "brand": request.brand, "character": request.character, "made_on": day,
        "consistency": likeness.consistency, "cells": cells, "palette": palette, "references": references,
    }  # fmt: skip
    content = _content(store, request, told, title, brand_title)
    out = io.BytesIO()
    draw_png(content).save(out, "PNG", optimize=True)
    drawn = {
        "png": (out.getvalue(), "image/png"),
        "pdf": (draw_pdf(content), "application/pdf"),
        "json": (canonical_json(told), "application/json"),
    }
    files = {kind: store.blobs.put(*made) for kind, made in drawn.items()}
    return {**told, "files": files}, SheetFiles({files[kind]: made for kind, made in drawn.items()})


def _distinct(pictures: dict[int, str]) -> dict[int, str]:
    """Two cells that ask for the same are one picture, which is as like to itself as can be."""
    first: dict[str, int] = {}
    for i, sha256 in pictures.items():
        first.setdefault(sha256, i)
    return {i: sha256 for sha256, i in first.items()}


def _assets(session: Session, campaign_id: uuid.UUID | None) -> dict[str, Asset]:
    """By shot."""
    whole = selectinload(Asset.versions).selectinload(AssetVersion.checks)
    rows = session.scalars(select(Asset).where(Asset.campaign_id == campaign_id).options(whole))
    return {asset.shot: asset for asset in rows}


def _vectors(session: Session, pictures: dict[int, str], encoder_sha256: str) -> dict[int, np.ndarray]:
    its = PictureEmbedding
    rows = select(its.picture_sha256, its.pooled).where(
        its.picture_sha256.in_(set(pictures.values())), its.encoder_sha256 == encoder_sha256, its.pooled.is_not(None)
    )
    known = {sha: np.asarray(pooled, dtype=np.float32) for sha, pooled in session.execute(rows)}
    return {i: known[sha] for i, sha in pictures.items() if sha in known and np.linalg.norm(known[sha]) > 0}


def _references(session: Session, assets: list[Asset]) -> list[dict[str, str]]:
    """Those that the cells came of, each once, by lineage, without those that may not be used any more."""
    versions = [a.current.id for a in assets if a.current is not None]
    records = session.scalars(select(LineageRecord.record).where(LineageRecord.version_id.in_(versions)))
    ids = {uuid.UUID(r["id"]) for record in records for r in record["references"]}
    today = datetime.now(UTC).date()
    usable = [
        r for r in session.scalars(select(Reference).where(Reference.id.in_(ids))) if problem_of(r, today) is None
    ]
    seen = {r.sha256: {"key": r.key, "sha256": r.sha256} for r in usable}
    return sorted(seen.values(), key=lambda r: (r["key"], r["sha256"]))[:MOST_REFERENCES]


def _told(cell: SheetCell, asset: Asset | None, likeness: float | None) -> dict[str, Any]:
    version = None if asset is None else asset.current
    checks = [] if version is None else version.checks
    identity = next((c for c in checks if c.name == "identity"), None)
    return {
        "section": cell.section, "label": cell.label, "prompt": cell.prompt,
        "asset": None if asset is None else str(asset.id), "version": None if version is None else version.number,
        "sha256": None if version is None else version.sha256, "tries": 0 if asset is None else len(asset.versions),
        "review": None if asset is None else asset.review.value,
        "identity": None if identity is None else {"outcome": identity.outcome.value, "value": identity.value, "threshold": identity.threshold},
        "failed": [c.name for c in checks if c.outcome is CheckOutcome.FAIL],
        "on_model": version is not None and asset is not None and asset.review not in OFF,
        "likeness": likeness,
    }  # fmt: skip


def _content(store: Store, request: SheetRequest, told: dict[str, Any], title: str, brand: str) -> SheetContent:
    by_section: dict[str, list[Cell]] = {}
    for cell in told["cells"]:
        image = None if cell["sha256"] is None else picture_of(store, cell["sha256"])
        by_section.setdefault(cell["section"], []).append(Cell(cell["label"], image, _note(cell), cell["on_model"]))
    sections = tuple(Section(name.capitalize(), tuple(by_section[name])) for name in SECTIONS if name in by_section)
    style = "" if request.style is None else f"{request.style} · "
    score = "" if told["consistency"] is None else f" · consistency {told['consistency']:.2f}"
    return SheetContent(
        title=title, subtitle=f"{brand} · {style}{told['made_on']}{score}", sections=sections,
        palette=tuple(Swatch("", colour) for colour in told["palette"]),
        references=tuple(picture_of(store, r["sha256"]) for r in told["references"]), footer=f"Run {told['run']}",
    )  # fmt: skip


def _note(cell: dict[str, Any]) -> str:
    """What a designer should know of it: which check failed, its identity, and that it was tried again."""
    parts = []
    if cell["failed"]:
        parts.append(f"failed: {', '.join(cell['failed'])}")
    if cell["identity"] is not None and cell["identity"]["value"] is not None:
        parts.append(f"identity {cell['identity']['value']:.2f}")
    if cell["tries"] > 1:
        parts.append(f"{cell['tries']} tries")
    return " · ".join(parts) if cell["sha256"] is not None else "not made"
