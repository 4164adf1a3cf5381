"""What a retake would change: the words of reviewers as settings, and the job of the next version. Loads no engine."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, RetakeRefused
from asset_store.repositories.jobs import NewJob
from asset_store.reviewing import retaking
from asset_store.reviewing.comments import Remark, remarks_of
from asset_store.reviewing.decide import GUEST, standing_decisions
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.retaking import Change
from asset_store.tables import Asset, AssetVersion, CheckOutcome, Job, Verdict
from flows.brief_fields import Number, Part, Prompt, Seed, Whole, Window, check_window
from flows.recipe_keys import heard, job_key, requeued
from ipadapter_engine.requests import MAX_SEED

SCALE_STEP, HIGHEST_SCALE = 0.15, 1.6  # what a failed identity check adds to the scale, and up to where
LONGEST_PROMPT = 2000
MOST_EXACT = 2**53  # a browser's numbers are exact below


class Wishes(Part):
    """What is to be different in the next version; what is not given stays. Without a seed another one is drawn."""

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    scale: Number | None = Field(None, ge=0, le=10)
    window: Window | None = None
    steps: Whole | None = Field(None, ge=1, le=200)
    guidance: Number | None = Field(None, ge=0, le=50)
    seed: Seed | None = None
    same_seed: bool = False

    @model_validator(mode="after")
    def _window_in_order(self) -> Wishes:
        if self.window is not None:
            check_window(self.window)
        return self


@dataclass(frozen=True)
class RetakePlan:
    """The job of the next version and how it differs, as a producer reads it."""

    asset_id: uuid.UUID
    seen_sha256: str
    job: NewJob
    changes: tuple[Change, ...]
    comments: tuple[Remark, ...]
    number: int
    most: int

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
    """Changes from what was said: the words of remarks and reasons go behind the prompt, and a failed or doubtful identity
    check raises the scale. What remarks point at is shown to the producer: the picture is made anew as a whole, with the
    recipe's own regions, source and emphasis."""
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
    return Wishes(prompt=prompt, scale=scale)


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
    wished = {k: v for k, v in wishes.model_dump(mode="json", exclude={"same_seed", "seed"}).items() if v is not None}
    after = {**before, **wished, "seed": seed}
    if "scale" in wished or "window" in wished:
        after.pop("preset", None)
    changes = tuple(Change(k, before.get(k), v) for k, v in after.items() if before.get(k) != v)
    if not changes:
        raise RetakeRefused("nothing is changed: the same picture would come", "Change a setting, such as the seed.")
    job = NewJob(job_key(after), requeued(made_by.batch_key, after), after)
    remarks = tuple(r for r in remarks_of(session, asset.id) if r.version_id == version.id)
    spent, policy = retaking.retakes_of(session, asset.id), policy_of(asset.campaign)
    return RetakePlan(asset.id, version.sha256, job, changes, remarks, spent + 1, policy.retakes)


def _current(asset: Asset) -> AssetVersion:
    if asset.current is None:
        raise NotFound("picture of asset", str(asset.id), "Run its campaign again: the picture is made.")
    return asset.current
