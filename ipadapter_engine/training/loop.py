"""One resumable training loop for every model: parts of a batch, checkpoint, average of weights, log, sheets."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ipadapter_engine.training.dataset import batches
from ipadapter_engine.training.errors import TrainingFailed, TrainingRefused
from ipadapter_engine.training.optimisation import Optimisation

CHECKPOINT_EVERY_S = 120.0
Batch = TypeVar("Batch")
Weights = dict[str, Tensor]


@contextmanager
def alone(out: Path, name: str) -> Iterator[None]:
    """Within, no other process or thread trains `name` in this folder; the lock goes with its process.

    Raises TrainingRefused where another does: both would write one checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingRefused(
                f"{name} is being trained in {out} already", "wait for that training, or stop it and start again"
            ) from None
        yield


@dataclass(frozen=True)
class Trained:
    """What a training took: `seconds` over all its processes, `losses` as (step, loss) pairs from its log."""

    seconds: float
    losses: tuple[tuple[int, float], ...]


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int, np.ndarray], Tensor],
    *,
    out: Path,
    steps: int,
    batch_size: int,
    examples: int,
    lr: float,
    warmup: int = 100,
    decay_from: float = 0.0,
    weight_decay: float = 0.01,
    ema_decay: float = 0.0,
    seed: int = 0,
    device: torch.device | None = None,
) -> nn.Module:
    """Minimise `loss_of(step, indices)` over the trainable parameters of `model`, in place; see `fit`."""
    how = Optimisation(
        steps=steps, batch_size=batch_size, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, warmup=warmup,
        schedule="cosine", decay_from=decay_from, ema_decay=ema_decay, seed=seed, log_every=50,
    )  # fmt: skip
    fit(
        name, model, lambda step, index: (step, index), lambda batch, rows: loss_of(batch[0], batch[1][rows]), how,
        out=out, examples=examples, device=device,
    )  # fmt: skip
    return model


def fit(
    name: str,
    model: nn.Module,
    batch_of: Callable[[int, np.ndarray], Batch],
    loss_of: Callable[[Batch, slice], Tensor],
    how: Optimisation,
    *,
    out: Path,
    examples: int,
    device: torch.device | None = None,
    fingerprint: str = "",
    on_step: Callable[[int, int], None] | None = None,
    on_sheet: Callable[[int, Weights], None] | None = None,
) -> Trained:
    """Minimise the loss over the trainable parameters of `model`, in place.

    batch_of(step, indices): all that a step draws at random and reads, for all its rows at once; torch's generator
        is seeded by the step. loss_of(batch, rows): the mean loss of some of the rows.
    Killed and started again it goes on from `out/NAME.ckpt` as if it had not been killed: bit for bit on a CPU. A
    checkpoint of another `fingerprint` (settings, data, base) raises TrainingRefused. With `ema_decay` the averaged
    weights are what the model holds at the end, and what `on_sheet(step, weights)` is given on the way.
    on_step(done, all) is called after every step; what it raises ends the training, saved. Losses go to `out/NAME.jsonl`.
    Raises TrainingFailed where loss or gradient are no numbers any more, before they are saved, or memory runs out.
    """
    device = device or torch.device("cpu")
    how.check_device(device)
    trainable = {k: p for k, p in model.named_parameters() if p.requires_grad}
    optimizer = how.optimizer_of(list(trainable.values()))
    scaler = torch.amp.GradScaler(device.type, enabled=how.precision == "fp16")
    average = {k: p.detach().clone() for k, p in trainable.items()} if how.ema_decay else {}
    checkpoint, start, spent = out / f"{name}.ckpt", 0, 0.0
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = _read(checkpoint)
        if state.get("fingerprint", "") != fingerprint:
            raise TrainingRefused(
                f"{checkpoint} is of a training with other settings, data or base",
                "use the same settings to go on with it, or another folder for a new training",
            )
        with torch.no_grad():
            for k, p in trainable.items():
                p.copy_(state["weights"][k])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state.get("scaler", {}) or scaler.state_dict())
        average = {k: v.to(device) for k, v in state["average"].items()}
        start, spent = state["step"], state.get("seconds", 0.0)

    began = saved = time.monotonic()

    def save(step: int) -> None:
        nonlocal saved
        weights = {k: p.detach() for k, p in trainable.items()}
        state = {"weights": weights, "optimizer": optimizer.state_dict(), "average": average, "step": step,
                 "scaler": scaler.state_dict(), "fingerprint": fingerprint,
                 "seconds": spent + time.monotonic() - began}  # fmt: skip
        _write(state, checkpoint)
        saved = time.monotonic()

    def check(step: int, loss: float, gradient: float) -> None:
        """What is no number would be saved, and gone on with for ever. A loss scaler skips such gradients itself."""
        for what, value in [("loss", loss)] if scaler.is_enabled() else [("loss", loss), ("gradient", gradient)]:
            if not math.isfinite(value):
                raise TrainingFailed(
                    f"the {what} of {name} is {value} at step {step}",
                    f"lower the learning rate from {how.lr:g}, or train in bf16 or fp32",
                )

    model.train()
    with _log(out / f"{name}.jsonl", start) as log:
        for step, index in batches(examples, how.rows, how.seed, start=start):
            if step >= how.steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = how.rate(step)
            torch.manual_seed(how.seed * 7_919 + step)
            batch = batch_of(step, index)
            optimizer.zero_grad(set_to_none=True)
            total: Tensor | float = 0.0
            for first in range(0, how.rows, how.batch_size):
                try:
                    loss = loss_of(batch, slice(first, first + how.batch_size)) / how.accumulate
                    scaler.scale(loss).backward()
                except torch.OutOfMemoryError as error:
                    raise TrainingFailed(
                        f"the memory of {device} does not hold {how.batch_size} rows of {name}",
                        "halve the batch and double accumulate, which is the same step, or train in bf16",
                    ) from error
                total = total + loss.detach()
            scaler.unscale_(optimizer)
            gradient = nn.utils.clip_grad_norm_(list(trainable.values()), how.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            if how.ema_decay:
                _follow(average, trainable, min(how.ema_decay, (1 + step) / (10 + step)))
            done = step + 1
            due = how.checkpoint_every and done % how.checkpoint_every == 0
            due = due or time.monotonic() - saved > CHECKPOINT_EVERY_S
            logged = step % how.log_every == 0 or done == how.steps
            if due or logged:  # not at every step: a GPU would wait for it
                check(step, told := float(total), float(gradient))
            if logged:
                rate = (done - start) * how.rows / (time.monotonic() - began)
                line = {"stage": name, "step": step, "loss": round(told, 5), "lr": how.rate(step),
                        "samples_s": round(rate, 1)}  # fmt: skip
                log.write(json.dumps(line) + "\n")
            if due:
                save(done)
            if on_sheet is not None and how.sheet_every and (done % how.sheet_every == 0 or done == how.steps):
                on_sheet(done, average or {k: p.detach() for k, p in trainable.items()})
            if on_step is not None:
                try:
                    on_step(done, how.steps)
                except BaseException:  # whoever watches wants to stop: nothing is lost
                    check(step, float(total), float(gradient))
                    save(done)
                    raise
    if start < how.steps or not checkpoint.exists():
        save(how.steps)
    if how.ema_decay:
        with torch.no_grad():
            for k, p in trainable.items():
                p.copy_(average[k])
    model.eval()
    return Trained(spent + time.monotonic() - began, read_losses(out, name))


def read_losses(out: Path, name: str) -> tuple[tuple[int, float], ...]:
    """(step, loss) pairs of a training's log."""
    lines = (json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines())
    return tuple((line["step"], line["loss"]) for line in lines)


def _follow(average: Weights, weights: dict[str, nn.Parameter], decay: float) -> None:
    with torch.no_grad():
        for k, p in weights.items():
            average[k].lerp_(p, 1 - decay)


def _read(checkpoint: Path) -> dict[str, Any]:
    try:  # on the CPU, where AdamW keeps its counters
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError):
        raise TrainingRefused(
            f"{checkpoint} is no checkpoint of a training", "remove it to begin anew, or name another folder"
        ) from None
    return state


def _write(state: dict[str, object], checkpoint: Path) -> None:
    """The whole file or none of it, on the disk before it has its name."""
    partial = checkpoint.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, checkpoint)


def _log(path: Path, start: int) -> TextIO:
    """The log, open at its end, without what a killed run wrote after the checkpoint that is gone on from."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] < start:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # torn by the kill
    partial = path.with_suffix(".partial.jsonl")
    partial.write_text("".join(kept))
    os.replace(partial, path)  # a kill in between loses no line
    return path.open("a", buffering=1)
