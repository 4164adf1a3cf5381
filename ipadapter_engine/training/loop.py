"""One resumable training loop for every stage: checkpoint, learning-rate schedule, average of weights, log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ipadapter_engine.training.dataset import batches

CHECKPOINT_EVERY_S = 120.0


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
    weight_decay: float = 0.01,
    ema_decay: float = 0.0,
    seed: int = 0,
    device: torch.device | None = None,
) -> nn.Module:
    """Minimise `loss_of(step, indices)` over the trainable parameters of `model`, in place.

    Killed and started again it goes on from `out/NAME.ckpt`, at most `CHECKPOINT_EVERY_S` behind.
    With `ema_decay` the averaged weights are what the model holds at the end.
    """
    device = device or torch.device("cpu")
    trainable = {k: p for k, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(list(trainable.values()), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    average = {k: p.detach().clone() for k, p in trainable.items()} if ema_decay else {}
    checkpoint, start = out / f"{name}.ckpt", 0
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        with torch.no_grad():
            for k, p in trainable.items():
                p.copy_(state["weights"][k])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]

    def save(step: int) -> None:
        partial = checkpoint.with_suffix(".partial")
        weights = {k: p.detach() for k, p in trainable.items()}
        torch.save({"weights": weights, "optimizer": optimizer.state_dict(), "average": average, "step": step}, partial)
        os.replace(partial, checkpoint)

    model.train()
    began = saved = time.monotonic()
    log = (out / f"{name}.jsonl").open("a", buffering=1)
    for step, index in batches(examples, batch_size, seed, start=start):
        if step >= steps:
            break
        progress = step / steps
        rate = lr * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed * 7_919 + step)
        loss = loss_of(step, index)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(trainable.values()), 1.0)
        optimizer.step()
        if ema_decay:
            decay = min(ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for k, p in trainable.items():
                    average[k].lerp_(p, 1 - decay)
        if step % 50 == 0:
            rate_seen = (step - start + 1) * batch_size / (time.monotonic() - began)
            line = {
                "stage": name,
                "step": step,
                "loss": round(loss.item(), 5),
                "lr": rate,
                "samples_s": round(rate_seen, 1),
            }
            log.write(json.dumps(line) + "\n")
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            save(step + 1)
            saved = time.monotonic()
    save(steps)
    if ema_decay:
        with torch.no_grad():
            for k, p in trainable.items():
                p.copy_(average[k])
    return model.eval()
