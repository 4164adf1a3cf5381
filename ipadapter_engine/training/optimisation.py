"""How weights are moved: the numbers of an optimiser, a schedule and a precision, the same for every training."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ModelMixin
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ipadapter_engine.training.errors import TrainingRefused
from ipadapter_engine.training.muon import Muon
from ipadapter_engine.training.precision import Precision

MOST_POSITIONS_BY_PARTS = 256
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def attention_for_training(device: torch.device, positions: int) -> AbstractContextManager[object]:
    """Within, attention to `positions` latent positions is computed as it trains fastest.

    On a CPU that is by its parts where they are few, as the backward pass of the fused kernel takes longer there; of many
    its matrices would fill the memory.
    """
    parts = device.type == "cpu" and positions <= MOST_POSITIONS_BY_PARTS
    return sdpa_kernel(SDPBackend.MATH) if parts else nullcontext()


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """steps: of the optimiser; each sees `accumulate` parts of `batch_size` rows, which equals one large batch.

    optimizer: adamw, or muon (see `muon.Muon`).
    lr, betas, weight_decay: AdamW's, and Muon's alike. warmup: steps until `lr` is reached. schedule: then it stays, or falls as a cosine
        to 2 %. decay_from: the share of the steps up to which it stays before it falls; the cosine's alone.
    clip_norm: the gradient's largest norm. ema_decay: of the average of weights that is kept instead; 0 keeps none.
    precision: fp32, or autocast to bf16 (CPU and CUDA) or fp16 (CUDA, with a loss scaler).
    log_every, checkpoint_every, sheet_every: in steps; 0 is never, for checkpoints every two minutes only.
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    decay_from: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    precision: Precision = "fp32"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 0
    sheet_every: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "accumulate": 1, "warmup": 0, "log_every": 1, "checkpoint_every": 0,
                 "sheet_every": 0, "seed": 0}  # fmt: skip
        problems = [f"{k} is {getattr(self, k)}, below {low}" for k, low in least.items() if getattr(self, k) < low]
        for name in ("lr", "clip_norm"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                problems.append(f"{name} is {value}, not above zero")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            problems.append(f"weight_decay is {self.weight_decay}, not 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas are {self.betas}, not from 0 to below 1")
        if self.optimizer not in ("adamw", "muon"):
            problems.append(f"optimizer is {self.optimizer!r}, not adamw or muon")
        if self.schedule not in ("constant", "cosine"):
            problems.append(f"schedule is {self.schedule!r}, not constant or cosine")
        if not 0 <= self.decay_from < 1:
            problems.append(f"decay_from is {self.decay_from}, not from 0 to below 1")
        elif self.decay_from and self.schedule == "constant":
            problems.append(f"decay_from is {self.decay_from}, and a constant rate never falls")
        if not 0 <= self.ema_decay < 1:
            problems.append(f"ema_decay is {self.ema_decay}, not from 0 to below 1")
        if self.precision not in ("fp32", *_AUTOCAST):
            problems.append(f"precision is {self.precision!r}, not fp32, bf16 or fp16")
        if problems:
            raise TrainingRefused("; ".join(problems), "correct the training's settings")

    def optimizer_of(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        kind = Muon if self.optimizer == "muon" else torch.optim.AdamW
        return kind(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)

    @property
    def rows(self) -> int:
        """Rows that one step of the optimiser sees."""
        return self.batch_size * self.accumulate

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        share = max(0.0, step / self.steps - self.decay_from) / (1 - self.decay_from)
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)) if self.schedule == "cosine" else 1.0
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * fall

    def check_device(self, device: torch.device) -> None:
        """Raises TrainingRefused for a precision that the device does not train in."""
        if self.precision == "fp16" and device.type != "cuda":
            raise TrainingRefused(f"fp16 trains on CUDA only, not on {device.type}", "choose bf16 or fp32")

    def check_base(self, unet: ModelMixin) -> None:
        """Raises TrainingRefused for a base on whose device, or in whose precision, this training cannot run."""
        self.check_device(unet.device)
        if self.precision == "fp32" and unet.dtype != torch.float32:
            raise TrainingRefused(
                f"the base is open in {unet.dtype}, and fp32 training needs it in float32",
                "open it in float32, or train in bf16 or fp16",
            )

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Within, the forward pass runs in this precision."""
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
