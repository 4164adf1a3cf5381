"""A character's own model: what determines its training, the training itself, and its record in the ledger."""

from __future__ import annotations

import dataclasses
import random
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sqlalchemy.orm import Session

from asset_store.canonical import sha256_of
from asset_store.errors import RightsRefused
from asset_store.repositories import libraries, models
from asset_store.repositories.models import NewModel
from asset_store.retention import name_blobs
from asset_store.rights import licences
from asset_store.tables import ModelKind
from flows.configured import configured
from flows.loading import picture_of
from flows.training_references import choose_references, today
from flows.training_report import told_of
from flows.training_settings import read_settings
from flows.wiring import Store, unet_engine
from ipadapter_engine.checkpoints import EMBEDDED, Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.training.captions import prompt_for
from ipadapter_engine.training.character import CharacterTraining, TrainedCharacter, train_character
from ipadapter_engine.training.mascots import random_staging

OnStep = Callable[[str, int, int], None]
STUDIO_STAGINGS = 24  # that the class pictures of the studio model show
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class CharacterPlan:
    """All that determines a character's training; `plan_sha256` names its folder, so that a rerun goes on there."""

    name: str
    character_id: uuid.UUID
    references: tuple[tuple[uuid.UUID, str, str], ...]  # id, key, sha256
    chosen: tuple[str, ...]  # a line a reference: how it was chosen
    settings: dict[str, Any]
    plan_sha256: str


def plan_training(
    store: Store, character: str, references: list[str] | None, settings: dict[str, Any]
) -> tuple[CharacterPlan, dict[str, Any] | None]:
    """Choose the references, and find the model if this very training was done before. Reads only."""
    with store.database.transaction() as session:  # nobody waits for the engine to hear of a name that there is not
        libraries.find_character(session, character)
    made = unet_engine(store.settings)
    wanted = character_settings(settings, made)
    with store.database.transaction() as session:
        return _planned(session, made, wanted, character, references, settings)


def _planned(
    session: Session, made: Engine, wanted: CharacterTraining, character: str, references: list[str] | None,
    settings: dict[str, Any],
) -> tuple[CharacterPlan, dict[str, Any] | None]:  # fmt: skip
    found = libraries.find_character(session, character)
    chosen, why = choose_references(session, made, found, references)
    chosen = sorted(chosen, key=lambda r: (r.sha256, r.id))  # however they are named, it is one training
    determined = {
        "references": [[str(r.id), r.sha256] for r in chosen],
        "settings": wanted.determining(),
        "base": [[m.role, m.sha256] for m in made.models if m.role not in ("ip-adapter", "image encoder")],
        "dtype": str(made.checkpoint.unet.dtype),
    }
    plan = CharacterPlan(
        models.name_of(found), found.id, tuple((r.id, r.key, r.sha256) for r in chosen), tuple(why), settings,
        sha256_of(determined),
    )  # fmt: skip
    known = models.find_planned(session, ModelKind.CHARACTER, plan.name, plan.plan_sha256)
    return plan, None if known is None else told_of(session, known)


def train(store: Store, plan: CharacterPlan, by: str, on_step: OnStep) -> dict[str, Any]:
    """Train, store and record, going on from the plan's last checkpoint.

    Raises RightsRefused where a reference may not be used any more; then nothing of the training is kept.
    """
    opened, training = unet_engine(store.settings), store.settings.home / "training"
    folder = training / plan.plan_sha256[:24]
    wanted = dataclasses.replace(character_settings(plan.settings, opened), class_cache=training / "class")
    unet = opened.checkpoint.unet
    pictures = [picture_of(store, sha) for _, _, sha in plan.references]
    checkpoint = _own_checkpoint(store, str(unet.device), unet.dtype)
    made = train_character(
        checkpoint, pictures, folder, wanted, on_step=partial(on_step, "steps"),
        on_picture=partial(on_step, "class pictures"),
    )  # fmt: skip
    try:
        told = _recorded(store, plan, wanted, made, checkpoint, by)
    except RightsRefused:
        shutil.rmtree(folder)  # nothing that it learnt is kept
        raise
    for gone in (made.file, folder / "character.ckpt"):  # the store has it, where a recall finds it
        gone.unlink(missing_ok=True)
    return {**told, "folder": str(folder)}


def _own_checkpoint(store: Store, device: str, dtype: torch.dtype) -> Checkpoint:
    """The base for this training alone, as no picture may be made on it meanwhile; without what is not trained on."""
    chosen = configured(store.settings).engine
    base = CheckpointPaths(chosen.base or EMBEDDED, tokenizer=chosen.tokenizer)
    opened = open_checkpoint(base, device=device, dtype=dtype)
    return dataclasses.replace(opened, adapter=None, further={}, controls={}, encoder=None)


def _recorded(
    store: Store,
    plan: CharacterPlan,
    wanted: CharacterTraining,
    made: TrainedCharacter,
    checkpoint: Checkpoint,
    by: str,
) -> dict[str, Any]:
    """Store and record what was trained; raises RightsRefused where a reference may not be used any more."""
    ids = [id_ for id_, _, _ in plan.references]
    with store.database.transaction() as session:
        licences.check_usable(session, ids, today())  # before there is a blob of it
    losses = [loss for _, loss in made.losses]
    figures = {"seconds": made.seconds, "first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
    base = checkpoint.base_model
    new = NewModel(
        ModelKind.CHARACTER, plan.name, store.blobs.put(made.file.read_bytes()), made.size_bytes, base.name, base.sha256,
        plan.plan_sha256, {**wanted.determining(), "base": made.base, "chosen": list(plan.chosen)}, figures,
        plan.character_id,
    )  # fmt: skip
    with store.database.transaction() as session:
        name_blobs(session, {new.sha256}, lambda _: store.blobs.put(made.file.read_bytes()))
        return told_of(session, models.save_model(session, new, ids, by, today()))


def character_settings(given: dict[str, Any], made: Engine) -> CharacterTraining:
    """CharacterTraining from JSON, in the precision that the engine's base is open in unless one is given.

    The studio model's characters are mascots, and its class pictures show them in many stagings. Raises
    TrainingRefused for a setting that there is not.
    """
    unet = made.checkpoint.unet
    own: dict[str, Any] = {"precision": _PRECISIONS.get(unet.dtype, "bf16" if unet.device.type == "cuda" else "fp32")}
    if made.family.name == "studio":
        rng = random.Random(0)
        own |= {"subject": "mascot", "class_prompts": [prompt_for(random_staging(rng)) for _ in range(STUDIO_STAGINGS)]}
    return read_settings(CharacterTraining, {**own, **given})
