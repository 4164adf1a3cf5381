"""Training: a character's own model from its references, or an adapter from a folder, into the ledger."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from asset_store.canonical import sha256_of
from asset_store.errors import FileInvalid, Problem, RightsRefused
from asset_store.repositories import libraries, models
from asset_store.repositories.models import NewModel
from asset_store.rights import licences
from asset_store.tables import ModelKind
from flows.library import picture_of
from flows.progress import report
from flows.retrying import if_it_may_pass
from flows.training_references import choose_references, today
from flows.training_report import show, told_of
from flows.wiring import Store, engine, open_store
from ipadapter_engine.checkpoints import EMBEDDED, Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.training.adapter_data import AdapterData, FolderData
from ipadapter_engine.training.adapter_training import AdapterTraining, train_adapter
from ipadapter_engine.training.captions import prompt_for
from ipadapter_engine.training.character import CharacterTraining, TrainedCharacter, train_character
from ipadapter_engine.training.errors import FolderInvalid, TrainingRefused
from ipadapter_engine.training.latents import Crop
from ipadapter_engine.training.mascots import random_staging
from ipadapter_engine.training.precision import quickest_precision
from ipadapter_engine.training.studio_data import ADAPTER_TRAINING, studio_adapter_data

OnStep = Callable[[str, int, int], None]
Chosen = TypeVar("Chosen", CharacterTraining, AdapterTraining)
STUDIO_STAGINGS = 24  # that the class pictures of the studio model show
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}
STUDIO_DATA = "studio"  # what `--data` calls the renderer's pictures


@dataclass(frozen=True)
class CharacterPlan:
    """All that determines a character's training; `plan_sha256` names its folder, so that a rerun goes on there."""

    name: str
    character_id: uuid.UUID
    references: tuple[tuple[uuid.UUID, str, str], ...]  # id, key, sha256
    chosen: tuple[str, ...]  # a line a reference: how it was chosen
    settings: dict[str, Any]
    plan_sha256: str


@flow(name="train-character", flow_run_name="train {character}")
async def train_character_model(
    character: str, by: str = "schedule", references: list[str] | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train a LoRA of a character of the library and record it as its next version.

    character: `name` or `brand/name`. references: keys in the library; by default its most typical identity
    references, 3 to 8. settings: fields of CharacterTraining. Killed and started again it goes on from its last
    checkpoint; the same training is recorded once.
    """
    plan, known = await plan_character(character, references, settings or {})
    if known is None:
        known = await train_planned_character(plan, by)
        await show(f"{plan.name} version {known['version']}", known, Path(known["folder"]))
    return {**known, "chosen": list(plan.chosen)}


@flow(name="train-adapter", flow_run_name="train {variant} adapter")
async def train_adapter_model(
    data: str, out: str, variant: str = "base", by: str = "schedule", base: str | None = None,
    encoder: str | None = None, settings: dict[str, Any] | None = None, size_px: int | None = None,
    crop: str = "centre",
) -> dict[str, Any]:  # fmt: skip
    """Train an adapter on a folder of pictures and captions, or on the studio's own pictures, and record it.

    settings: fields of AdapterTraining. The file, its log and its sheets are in `out`, where a rerun goes on.
    """
    paths = {"base": base, "encoder": encoder}
    told = {**(settings or {}), "variant": variant}
    made = await train_planned_adapter(data, out, paths, told, size_px, crop, by)
    await show(f"adapter {made['name']} version {made['version']}", made, Path(out))
    return made


# ---------------------------------------------------------------------------- a character


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[1, 5], tags=["training"], retry_condition_fn=if_it_may_pass)  # fmt: skip
async def plan_character(
    character: str, references: list[str] | None, settings: dict[str, Any]
) -> tuple[CharacterPlan, dict[str, Any] | None]:
    """Choose the references, and find the model if this very training was done before. Reads only."""

    def work() -> tuple[CharacterPlan, dict[str, Any] | None]:
        with open_store() as store:
            made = engine(store.settings)
            wanted = character_settings(settings, made)
            with store.database.transaction() as session:
                return planned(session, made, wanted)

    def planned(
        session: Session, made: Engine, wanted: CharacterTraining
    ) -> tuple[CharacterPlan, dict[str, Any] | None]:
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

    return await asyncio.to_thread(work)


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10], tags=["training", "gpu"], retry_condition_fn=if_it_may_pass)  # fmt: skip
async def train_planned_character(plan: CharacterPlan, by: str) -> dict[str, Any]:
    """Train, store and record. Safe to repeat: it goes on from its checkpoint, and is recorded once."""

    def work(on_step: OnStep) -> dict[str, Any]:
        with open_store() as store:
            opened, training = engine(store.settings), store.settings.home / "training"
            folder = training / plan.plan_sha256[:24]
            wanted = dataclasses.replace(character_settings(plan.settings, opened), class_cache=training / "class")
            unet = opened.checkpoint.unet
            base = CheckpointPaths(store.settings.engine.base or EMBEDDED)
            checkpoint = dataclasses.replace(_opened(base, str(unet.device), unet.dtype), encoder=None)
            pictures = [picture_of(store, sha) for _, _, sha in plan.references]
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

    return await _stoppable(work)


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
    unet = next(m for m in checkpoint.models if m.role == "unet")
    new = NewModel(
        ModelKind.CHARACTER, plan.name, store.blobs.put(made.file.read_bytes()), made.size_bytes, unet.name, unet.sha256,
        plan.plan_sha256, {**wanted.determining(), "base": made.base, "chosen": list(plan.chosen)}, figures,
        plan.character_id,
    )  # fmt: skip
    with store.database.transaction() as session:
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


# ---------------------------------------------------------------------------- an adapter


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10], tags=["training", "gpu"], retry_condition_fn=if_it_may_pass)  # fmt: skip
async def train_planned_adapter(
    data: str, out: str, paths: dict[str, str | None], settings: dict[str, Any], size_px: int | None, crop: str, by: str
) -> dict[str, Any]:
    """Open, read, train, store and record. Safe to repeat: it goes on from its checkpoint, and is recorded once."""

    def work(on_step: OnStep) -> dict[str, Any]:
        with open_store() as store:
            device = _device(store)
            own: dict[str, Any] = {"precision": "bf16" if device.startswith("cuda") else "fp32"}
            if data == STUDIO_DATA:
                own |= {**ADAPTER_TRAINING, "precision": quickest_precision(torch.device(device).type)}
            wanted = read_settings(AdapterTraining, {**own, **settings})
            wanted.check_device(torch.device(device))
            checkpoint = _base_of_adapter(store, paths, wanted, device)
            examples = _examples(data, checkpoint, wanted, size_px, crop, Path(out), partial(on_step, "encoding"))
            train_adapter(checkpoint, examples, Path(out), wanted, on_step=partial(on_step, "steps"))
            file = Path(out) / wanted.file_name
            note = json.loads((Path(out) / f"{wanted.called}.json").read_text())
            unet = next(m for m in checkpoint.models if m.role == "unet")
            new = NewModel(
                ModelKind.ADAPTER, wanted.called, store.blobs.put(file.read_bytes()), file.stat().st_size, unet.name,
                unet.sha256, sha256_of({k: note[k] for k in ("settings", "base", "encoder", "data", "examples")}),
                {**note["settings"], "base": note["base"], "encoder": note["encoder"], "data": note["data"],
                 "examples": note["examples"]},
                {"seconds": note["seconds"], "last_loss": note["last_loss"]},
            )  # fmt: skip
            with store.database.transaction() as session:
                told = told_of(session, models.save_model(session, new, [], by, today()))
            return {**told, "file": str(file), "log": wanted.called}

    return await _stoppable(work)


def _device(store: Store) -> str:
    chosen = store.settings.engine.device
    return chosen if chosen != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _base_of_adapter(store: Store, paths: dict[str, str | None], wanted: AdapterTraining, device: str) -> Checkpoint:
    """The base that is named, else that of the settings, else the embedded one; in half precision where it trains so
    on a GPU, as it is frozen."""
    chosen = store.settings.engine
    half = {"bf16": torch.bfloat16, "fp16": torch.float16} if device.startswith("cuda") else {}
    base = Path(paths["base"]) if paths["base"] else chosen.base or EMBEDDED
    encoder = Path(paths["encoder"]) if paths["encoder"] else None if paths["base"] else chosen.encoder
    return _opened(CheckpointPaths(base, encoder=encoder), device, half.get(wanted.precision, torch.float32))


def _opened(paths: CheckpointPaths, device: str, dtype: torch.dtype) -> Checkpoint:
    """A checkpoint for this training alone, as no picture may be made on it meanwhile; without what is not trained on."""
    opened = open_checkpoint(paths, device=device, dtype=dtype)
    return dataclasses.replace(opened, adapter=None, further={}, controls={})


def _examples(
    data: str, checkpoint: Checkpoint, wanted: AdapterTraining, size_px: int | None, crop: str, out: Path,
    on_picture: Callable[[int, int], None],
) -> AdapterData:  # fmt: skip
    """The examples that `--data` names. Raises FileInvalid for a folder with mistakes, all of them at once."""
    if data == STUDIO_DATA:
        return studio_adapter_data(checkpoint, wanted, cache=out / "studio")
    try:
        return FolderData.open(
            Path(data), checkpoint, variant=wanted.variant, size_px=size_px, crop=cast(Crop, crop),
            cache=out / "encoded", on_picture=on_picture,
        )  # fmt: skip
    except FolderInvalid as error:
        told = [Problem(p.file, p.line, "", p.message) for p in error.problems]
        raise FileInvalid(told) from None


# ---------------------------------------------------------------------------- settings, and stopping


def read_settings(kind: type[Chosen], given: dict[str, Any]) -> Chosen:
    """A settings dataclass from JSON; raises TrainingRefused for fields that it does not have and values of another kind."""
    names = {f.name for f in dataclasses.fields(kind)}
    strange = sorted(set(given) - names)
    if strange:
        raise TrainingRefused(f"{', '.join(strange)}: no such setting", f"choose from {', '.join(sorted(names))}")
    try:
        return TypeAdapter(kind).validate_python({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()]
        raise TrainingRefused("; ".join(wrong), "correct the training's settings") from None


class _Stopped(Exception):
    """The flow was cancelled, by Ctrl-C or by Prefect; the training has saved where it was."""


async def _stoppable(work: Callable[[OnStep], dict[str, Any]]) -> dict[str, Any]:
    """Run `work` in a thread, which ends at the next step or picture that it tells of when this is cancelled."""
    stopped = threading.Event()

    def on_step(what: str, done: int, of: int) -> None:
        report(what, done, of)
        if stopped.is_set():
            raise _Stopped

    try:
        return await asyncio.to_thread(work, on_step)
    finally:
        stopped.set()
