"""An adapter, trained on a folder of pictures or on the studio's own, and its record in the ledger."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from asset_store.canonical import sha256_of
from asset_store.errors import FileInvalid, Problem
from asset_store.repositories import models
from asset_store.repositories.models import NewModel
from asset_store.retention import name_blobs
from asset_store.tables import ModelKind
from flows.configured import configured
from flows.training_references import today
from flows.training_report import told_of
from flows.training_settings import read_settings
from flows.wiring import Store
from ipadapter_engine.checkpoints import EMBEDDED, Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.training.adapter_data import AdapterData, FolderData
from ipadapter_engine.training.adapter_training import AdapterTraining, train_adapter
from ipadapter_engine.training.errors import FolderInvalid
from ipadapter_engine.training.latents import Crop
from ipadapter_engine.training.precision import quickest_precision
from ipadapter_engine.training.studio_data import ADAPTER_TRAINING, studio_adapter_data

OnStep = Callable[[str, int, int], None]
STUDIO_DATA = "studio"  # what `--data` calls the renderer's pictures


def train(
    store: Store, data: str, out: str, paths: dict[str, str | None], settings: dict[str, Any], size_px: int | None,
    crop: str, by: str, on_step: OnStep,
) -> dict[str, Any]:  # fmt: skip
    """Open, read, train, store and record, going on from the last checkpoint in `out`."""
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
    base = checkpoint.base_model
    new = NewModel(
        ModelKind.ADAPTER, wanted.called, store.blobs.put(file.read_bytes()), file.stat().st_size, base.name,
        base.sha256, sha256_of({k: note[k] for k in ("settings", "base", "encoder", "data", "examples")}),
        {**note["settings"], "base": note["base"], "encoder": note["encoder"], "data": note["data"],
         "examples": note["examples"]},
        {"seconds": note["seconds"], "last_loss": note["last_loss"]},
    )  # fmt: skip
    with store.database.transaction() as session:
        name_blobs(session, {new.sha256}, lambda _: store.blobs.put(file.read_bytes()))
        told = told_of(session, models.save_model(session, new, [], by, today()))
    return {**told, "file": str(file), "log": wanted.called}


def _device(store: Store) -> str:
    chosen = store.settings.engine.device
    return chosen if chosen != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _base_of_adapter(store: Store, paths: dict[str, str | None], wanted: AdapterTraining, device: str) -> Checkpoint:
    """The base that is named, else that of the settings, else the embedded one; in half precision where it trains so
    on a GPU, as it is frozen."""
    chosen = configured(store.settings).engine
    half = {"bf16": torch.bfloat16, "fp16": torch.float16} if device.startswith("cuda") else {}
    base = Path(paths["base"]) if paths["base"] else chosen.base or EMBEDDED
    encoder = Path(paths["encoder"]) if paths["encoder"] else None if paths["base"] else chosen.encoder
    return _opened(
        CheckpointPaths(base, encoder=encoder, tokenizer=chosen.tokenizer),
        device,
        half.get(wanted.precision, torch.float32),
    )


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
