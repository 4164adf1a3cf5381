"""Training: a character's own model from its references, or an adapter from a folder, into the ledger."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.accelerator import accelerator
from flows.parameters import Actor, Crop, Name, Place, Variant
from flows.progress import report
from flows.retrying import if_it_may_pass
from flows.training_report import show
from flows.wiring import open_store

if TYPE_CHECKING:
    from flows.character_training import CharacterPlan

OnStep = Callable[[str, int, int], None]


@flow(name="train-character", flow_run_name="train {character}")
async def train_character_model(
    character: Name, by: Actor = "schedule", references: list[str] | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train a LoRA of a character of the library and record it as its next version.

    Killed and started again it goes on from its last checkpoint; the same training is recorded once.

    Args:
        character: A character of the library: its name, or brand/name where several brands have one of that name.
        by: Who asks for it, as the audit will say.
        references: Keys in the library; by default its most typical identity references, 3 to 8.
        settings: Fields of CharacterTraining that differ from its own, such as steps, rank, lr, size_px, seed.
    """
    plan, known = await plan_character(character, references, settings or {})
    if known is None:
        async with accelerator():
            known = await train_planned_character(plan, by)
        await show(f"{plan.name} version {known['version']}", known, Path(known["folder"]))
    return {**known, "chosen": list(plan.chosen)}


@flow(name="train-adapter", flow_run_name="train {variant} adapter")
async def train_adapter_model(
    data: Place, out: Place, variant: Variant = "base", by: Actor = "schedule", base: str | None = None,
    encoder: str | None = None, settings: dict[str, Any] | None = None,
    size_px: Annotated[int | None, Field(ge=8, le=4096)] = None, crop: Crop = "centre",
) -> dict[str, Any]:  # fmt: skip
    """Train an adapter on a folder of pictures and captions, or on the studio's own pictures, and record it.

    Args:
        data: A folder of pictures and captions on the machine that runs this, or: studio.
        out: The folder where the file, its log and its sheets go, and where a rerun goes on.
        variant: base reads pooled embeddings, plus the hidden states through a resampler.
        by: Who asks for it, as the audit will say.
        base: A diffusers folder or one file; by default that of ONMODEL_ENGINE__BASE, else the studio model.
        encoder: The folder of the CLIP image encoder.
        settings: Fields of AdapterTraining that differ from its own, such as steps, batch_size, lr, seed.
        size_px: The side of the training pictures; by default the base's own.
        crop: What of a picture that is not square is seen.
    """
    paths = {"base": base, "encoder": encoder}
    told = {**(settings or {}), "variant": variant}
    async with accelerator():
        made = await train_planned_adapter(data, out, paths, told, size_px, crop, by)
    await show(f"adapter {made['name']} version {made['version']}", made, Path(out))
    return made


# ---------------------------------------------------------------------------- a character


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=if_it_may_pass)  # fmt: skip
async def plan_character(
    character: str, references: list[str] | None, settings: dict[str, Any]
) -> tuple[CharacterPlan, dict[str, Any] | None]:
    """Choose the references, and find the model if this very training was done before. Reads only."""

    def work() -> tuple[CharacterPlan, dict[str, Any] | None]:
        from flows.character_training import plan_training

        with open_store() as store:
            return plan_training(store, character, references, settings)

    return await asyncio.to_thread(work)


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=if_it_may_pass)  # fmt: skip
async def train_planned_character(plan: CharacterPlan, by: str) -> dict[str, Any]:
    """Train, store and record. Safe to repeat: it goes on from its checkpoint, and is recorded once."""

    def work(on_step: OnStep) -> dict[str, Any]:
        from flows.character_training import train

        with open_store() as store:
            return train(store, plan, by, on_step)

    return await _stoppable(work)


# ---------------------------------------------------------------------------- an adapter


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=if_it_may_pass)  # fmt: skip
async def train_planned_adapter(
    data: str, out: str, paths: dict[str, str | None], settings: dict[str, Any], size_px: int | None, crop: str, by: str
) -> dict[str, Any]:
    """Open, read, train, store and record. Safe to repeat: it goes on from its checkpoint, and is recorded once."""

    def work(on_step: OnStep) -> dict[str, Any]:
        from flows.adapter_training import train

        with open_store() as store:
            return train(store, data, out, paths, settings, size_px, crop, by, on_step)

    return await _stoppable(work)


# ---------------------------------------------------------------------------- stopping


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
