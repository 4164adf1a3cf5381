"""What a retake would change: the words of reviewers as settings, and the job of the next version. Loads no engine."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, RetakeRefused
from asset_store.repositories.jobs import NewJob
from asset_store.retention import name_blobs
from asset_store.reviewing import retaking
from asset_store.reviewing.comments import Remark, remarks_of
from asset_store.reviewing.decide import GUEST, standing_decisions
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.retaking import Change
from asset_store.tables import Asset, AssetVersion, CheckOutcome, Job, Retake, Verdict
from flows.brief_fields import Number, Part, Prompt, Seed, Whole, Window, check_window
from flows.recipe_keys import DIRECTED, heard, job_key, requeued
from flows.recipe_words import told_of_source
from flows.repainting import Repaint, can_repaint, is_all, marked, repainted, unpainted
from ipadapter_engine.requests import MAX_SEED

if TYPE_CHECKING:
    from flows.wiring import Store

SCALE_STEP, HIGHEST_SCALE = 0.15, 1.6  # what a failed identity check adds to the scale, and up to where
LONGEST_PROMPT = 2000
MOST_EXACT = 2**53  # a browser's numbers are exact below
UNTOLD = ("recipe", "preset")  # they follow from the others


class Wishes(Part):
    """What is to be different in the next version; what is not given stays. Without a seed another one is drawn, and without
    `repaint` the whole picture is made anew."""

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    scale: Number | None = Field(None, ge=0, le=10)
    window: Window | None = None
    steps: Whole | None = Field(None, ge=1, le=200)
    guidance: Number | None = Field(None, ge=0, le=50)
    seed: Seed | None = None
    same_seed: bool = False
    repaint: Repaint | None = None

    @model_validator(mode="after")
    def _window_in_order(self) -> Wishes:
        if self.window is not None:
            check_window(self.window)
        return self


@dataclass(frozen=True)
class RetakePlan:
    """The job of the next version and how it differs, as a producer reads it. `blobs`: what its recipe names by sha256 and is
    to be stored before it is begun."""

    asset_id: uuid.UUID
    seen_sha256: str
    job: NewJob
    changes: tuple[Change, ...]
    comments: tuple[Remark, ...]
    number: int
    most: int
    repaint: Repaint | None = None
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        return {
            "asset": str(self.asset_id),
            "sha256": self.seen_sha256,
            "retake": self.number,
            "of": self.most,
            "changes": [c.as_json() for c in self.changes],
            "comments": [{"id": str(c.id), "by": c.by, "text": c.text, "region": c.region} for c in self.comments],
            "job": self.job.key,
        }


def suggest(session: Session, asset: Asset) -> Wishes:
    """Changes from what was said: the words of remarks and reasons go behind the prompt, a failed or doubtful identity check
    raises the scale, and only the places that boxes and drawings mark are repainted.

    Where the identity is in doubt, all of it is marked, or the family starts from no picture, the whole is made anew, with
    the recipe's own source, regions and emphasis.
    """
    version = _current(asset)
    recipe = session.get_one(Job, version.job_key).recipe
    remarks = remarks_of(session, asset.id)
    said = [r.text for r in remarks if r.version_id == version.id and not r.by.startswith(GUEST)]
    said += [d.reason for d in standing_decisions(session, version.id) if d.verdict is Verdict.REQUEST_CHANGES]
    words = [w for text in said if (w := " ".join(text.split()).strip(" .!"))]
    prompt = ", ".join(dict.fromkeys([recipe["prompt"], *words]))[:LONGEST_PROMPT] if words else None
    doubtful = any(c.name == "identity" and c.outcome is not CheckOutcome.PASS for c in version.checks)
    scale = None
    if doubtful and heard(recipe):
        scale = round(min(max(HIGHEST_SCALE, recipe["scale"]), recipe["scale"] + SCALE_STEP), 2)
    repaint = marked(remarks, version) if can_repaint(recipe) and scale is None else None
    if repaint is not None and is_all(repaint.places, recipe["width_px"], recipe["height_px"]):
        repaint = None
    return Wishes(prompt=prompt, scale=scale, repaint=repaint)


def placed(
    session: Session, asset: Asset, wishes: Wishes | None, *, repaint: bool | None, strength: float | None
) -> Wishes:
    """The wishes, or what was said of the picture, with what is said of the places that are marked in it: repainted, so
    strongly, or not. RetakeRefused where none is marked."""
    said = suggest(session, asset) if wishes is None else wishes
    if repaint is False:
        return said.model_copy(update={"repaint": None})
    version = _current(asset)
    places = marked(remarks_of(session, asset.id), version)
    if places is None:
        raise RetakeRefused(
            "no place is marked in the current picture",
            "Mark one with a box: `onmodel review comment … --box x,y,width,height`.",
        )
    strongly = places.strength if strength is None else strength
    return said.model_copy(update={"repaint": Repaint(places=places.places, strength=strongly)})


def plan_retake(session: Session, asset: Asset, wishes: Wishes | None) -> RetakePlan:
    """The next version's recipe: the current one's with what is wished, or without wishes with what was said of it.

    Reads only. RetakeRefused where nothing would change.
    """
    wishes = suggest(session, asset) if wishes is None else wishes
    version = _current(asset)
    made_by = session.get_one(Job, version.job_key)
    before = made_by.recipe
    seed = before["seed"] if wishes.same_seed else wishes.seed
    if seed is None:
        seed = random.SystemRandom().randrange(min(MAX_SEED, MOST_EXACT))
    said = wishes.model_dump(mode="json", exclude={"same_seed", "seed", "repaint"})
    wished = {k: v for k, v in said.items() if v is not None}
    after = {**unpainted(before, _first(session, asset)), **wished, "seed": seed}
    blobs = {}
    if wishes.repaint is not None:
        painted = repainted(version, before, wishes.repaint)
        after |= {"source": painted.source, "recipe": DIRECTED}
        blobs[painted.source["mask_sha256"]] = painted.mask
    if "scale" in wished or "window" in wished:
        after.pop("preset", None)
    changes = tuple(_changes(before, after))
    if not changes:
        raise RetakeRefused("nothing is changed: the same picture would come", "Change a setting, such as the seed.")
    job = NewJob(job_key(after), requeued(made_by.batch_key, after), after)
    remarks = tuple(r for r in remarks_of(session, asset.id) if r.version_id == version.id)
    spent, policy = retaking.retakes_of(session, asset.id), policy_of(asset.campaign)
    return RetakePlan(asset.id, version.sha256, job, changes, remarks, spent + 1, policy.retakes, wishes.repaint, blobs)


def begin(session: Session, store: Store, plan: RetakePlan, by: str, seen_sha256: str) -> Retake:
    """Queue the next version, its mask stored before any row names it. Raises what `retaking.begin` does."""
    for data in plan.blobs.values():
        store.blobs.put(data, "image/png")
    name_blobs(session, plan.blobs, lambda sha256: store.blobs.put(plan.blobs[sha256], "image/png"))
    comments = [c.id for c in plan.comments]
    return retaking.begin(session, plan.asset_id, plan.job, plan.changes, by, seen_sha256, comments)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """Settings that differ. A source is told in words: its hashes say nothing to a producer."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old == new or name in UNTOLD:
            continue
        yield Change(name, _told(old), _told(new)) if name == "source" else Change(name, old, new)


def _told(source: dict[str, Any] | None) -> str | None:
    return None if source is None else told_of_source(source)


def _first(session: Session, asset: Asset) -> dict[str, Any]:
    """The recipe that the brief gave."""
    return session.get_one(Job, asset.versions[0].job_key).recipe


def _current(asset: Asset) -> AssetVersion:
    if asset.current is None:
        raise NotFound("picture of asset", str(asset.id), "Run its campaign again: the picture is made.")
    return asset.current
