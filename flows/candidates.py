"""Best of N: which of a job's candidates is kept, and what is written down of the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.checks import CheckPolicy, check_blank
from asset_store.repositories import libraries
from asset_store.tables import Asset, AssetVersion, Campaign, CheckOutcome
from flows import recipes
from flows.choosing import unit
from flows.looking import Finished
from ipadapter_engine.errors import RequestRefused


def best(likeness: Sequence[float], failed: Sequence[Sequence[str]]) -> int:
    """Position of the candidate to keep: the most alike of those that fail no check, else the most alike of all.

    Of equal ones the first, so that the same candidates give the same picture on every machine.
    """
    return min(range(len(likeness)), key=lambda i: (bool(failed[i]), -likeness[i], i))


def choose_candidate(
    session: Session, key: str, recipe: dict[str, Any], candidates: Sequence[Finished], encoder: str
) -> tuple[Finished, dict[str, Any]]:
    """The candidate to keep of a job, and what its run record says: all seeds, likenesses and failed checks.

    candidates are in the order of `recipes.seeds_of`. The others' blobs are kept, and are assets of nobody.
    RequestRefused as `check_comparable`.
    """
    check_comparable(session, [recipe], encoder)
    vectors = libraries.embeddings_of(session, {r["sha256"] for r in recipes.of_identity(recipe)}, encoder)
    references = unit(np.stack([np.asarray(v.pooled, dtype=np.float32) for _, v in sorted(vectors.items())]))
    likeness = [float((references @ unit(c.embedding)).mean()) for c in candidates]
    taken = _pixels_of_others(session, key, [c.pixels for c in candidates])
    policy = CheckPolicy(identity_min=None, blank_spread=recipe["best_of"]["blank_spread"])
    failed = [_failed(c, policy, taken) for c in candidates]
    kept = best(likeness, failed)
    rows = [
        {"seed": seed, "sha256": c.sha256, "pixel_sha256": c.pixels, "likeness": round(alike, 4), "failed": wrong,
         "kept": i == kept}
        for i, (seed, c, alike, wrong) in enumerate(
            zip(recipes.seeds_of(recipe), candidates, likeness, failed, strict=True)
        )
    ]  # fmt: skip
    return candidates[kept], {"seed": rows[kept]["seed"], "candidates": rows}


def check_comparable(session: Session, asked: Iterable[dict[str, Any]], encoder: str) -> None:
    """RequestRefused where the candidates of a recipe have nothing to be compared with by the encoder of this sha256."""
    shown = [recipes.of_identity(recipe) for recipe in asked if recipes.candidates(recipe) > 1]
    keys = {r["sha256"]: r["key"] for references in shown for r in references}
    missing = sorted(keys[sha256] for sha256 in libraries.missing_embeddings(session, set(keys), encoder))
    if missing or not all(shown):
        what = f"{', '.join(missing)} has no embedding of this encoder" if missing else "there are no references"
        raise RequestRefused(
            f"best_of cannot compare its candidates: {what}", "ingest its library again, or best_of: 1 for this shot"
        )


def _failed(candidate: Finished, policy: CheckPolicy, taken: set[str]) -> list[str]:
    blank = check_blank(candidate.image, policy, finite=candidate.finite)
    failed = [blank.name] if blank.outcome is CheckOutcome.FAIL else []
    return [*failed, "not a duplicate"] if candidate.pixels in taken else failed


def _pixels_of_others(session: Session, key: str, pixels: Sequence[str]) -> set[str]:
    """Those of `pixels` that are an asset of another job already, in the brands that wait for this one."""
    waiting = select(Campaign.brand_id).join(Asset, Asset.campaign_id == Campaign.id).where(Asset.job_key == key)
    return set(
        session.scalars(
            select(AssetVersion.pixel_sha256)
            .join(Asset, Asset.id == AssetVersion.asset_id)
            .join(Campaign, Campaign.id == Asset.campaign_id)
            .where(AssetVersion.pixel_sha256.in_(pixels), AssetVersion.job_key != key)
            .where(Campaign.brand_id.in_(waiting))
        )
    )
