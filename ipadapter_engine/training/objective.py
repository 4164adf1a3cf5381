"""What a denoiser is asked to learn: noised latents, the target that its scheduler names, the weight of the error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ipadapter_engine.checkpoints import Checkpoint
from ipadapter_engine.training.errors import TrainingRefused

_SCHEDULER: Any = DDPMScheduler  # untyped in diffusers
PREDICTIONS = ("epsilon", "v_prediction", "sample")
_NOISE_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
                   "rescale_betas_zero_snr", "prediction_type")  # fmt: skip


@dataclass(frozen=True)
class Noised:
    """latents, target (n, c, h, w); weight (n,) of each row's mean squared error."""

    latents: Tensor
    target: Tensor
    weight: Tensor

    def loss(self, guess: Tensor) -> Tensor:
        """The weighted mean over the rows."""
        return (self.weight * self.row_losses(guess)).mean()

    def row_losses(self, guess: Tensor) -> Tensor:
        return (guess.float() - self.target).square().mean((1, 2, 3))


class Objective:
    """The noise schedule and the prediction type of a checkpoint's scheduler.

    gamma: the largest signal-to-noise ratio that counts (min-SNR, Hang et al., 2023, arXiv:2303.09556); None weighs
    every timestep alike. Where the model predicts the clean picture or v, it is 1 + SNR (Salimans and Ho, 2022) that
    counts up to gamma: else a schedule that ends in pure noise would teach nothing at the step where pictures begin.
    """

    def __init__(self, scheduler_config: dict[str, Any], gamma: float | None, device: torch.device) -> None:
        self.prediction = str(scheduler_config.get("prediction_type", "epsilon"))
        if self.prediction not in PREDICTIONS:
            raise TrainingRefused(
                f"this base's scheduler predicts {self.prediction!r}, which is not trained here",
                f"use a base whose scheduler predicts one of {', '.join(PREDICTIONS)}",
            )
        if gamma is not None and not gamma > 0:
            raise TrainingRefused(f"snr_gamma is {gamma}, not above zero", "give 5.0, or none to weigh all steps alike")
        self.gamma = gamma
        known = {k: scheduler_config[k] for k in _NOISE_SCHEDULE if scheduler_config.get(k) is not None}
        self.alphas = _SCHEDULER(**known).alphas_cumprod.to(device)

    def draw(self, latents: Tensor, *, noisier: float = 1.0) -> tuple[Tensor, Tensor]:
        """Noise like `latents` and timesteps (n,), from torch's generator of the CPU: the same on every device.

        noisier: timesteps are uniform at 1; at 2 one is drawn as often as it is late, as what words and references decide
        is decided early, where noise hides everything else.
        """
        if noisier == 1.0:
            return torch.randn(latents.shape), torch.randint(0, len(self.alphas), latents.shape[:1])
        return torch.randn(latents.shape), (torch.rand(latents.shape[:1]) ** (1 / noisier) * len(self.alphas)).long()

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """x, noise (n, c, h, w), t (n,) on the objective's device."""
        a = self.alphas[t].view(-1, 1, 1, 1)
        signal, spread = a.sqrt(), (1 - a).sqrt()
        target = {"epsilon": noise, "sample": x}.get(self.prediction)
        if target is None:
            target = signal * noise - spread * x  # v; Salimans and Ho, 2022, arXiv:2202.00512
        return Noised(signal * x + spread * noise, target, self._weight(a.flatten()))

    def _weight(self, a: Tensor) -> Tensor:
        if self.gamma is None:
            return torch.ones_like(a)
        snr = a / (1 - a)
        if self.prediction == "epsilon":
            return (self.gamma / snr).clamp(max=1)
        capped = (1 + snr).clamp(max=self.gamma)
        return capped if self.prediction == "sample" else capped / (1 + snr)  # v's error is 1 + SNR times x's


@dataclass(frozen=True)
class TextStates:
    """What the UNet is told in words: states (n, tokens, width) and, by SDXL, pooled states (n, width) or None."""

    states: Tensor
    pooled: Tensor | None

    def __getitem__(self, rows: Any) -> TextStates:
        return TextStates(self.states[rows], None if self.pooled is None else self.pooled[rows])

    @classmethod
    def joined(cls, parts: list[TextStates]) -> TextStates:
        pooled = [p.pooled for p in parts if p.pooled is not None]
        return cls(torch.cat([p.states for p in parts]), torch.cat(pooled) if pooled else None)

    def added(self, sizes: Tensor) -> dict[str, Tensor] | None:
        """What SDXL's UNet is told besides; `sizes` (n, 6) as `latents.sizes_of` gives them a row."""
        if self.pooled is None:
            return None
        return {"text_embeds": self.pooled, "time_ids": sizes.to(self.pooled.device, torch.float32)}


@torch.no_grad()
def text_states(checkpoint: Checkpoint, texts: list[str]) -> TextStates:
    """Encode prompts as the engine does, each distinct one once; an empty prompt is zeros where the base has it so."""
    distinct = list(dict.fromkeys(texts))
    layer = checkpoint.family.text_layer
    states, pooled = [], None
    for part in checkpoint.text:
        length = min(part.tokenizer.model_max_length, part.model.config.max_position_embeddings)
        ids = part.tokenizer(distinct, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        out = part.model(ids["input_ids"].to(part.model.device), output_hidden_states=layer is not None)
        states.append(out.last_hidden_state if layer is None else out.hidden_states[layer])
        pooled = getattr(out, "text_embeds", None)
    told = TextStates(torch.cat(states, dim=-1), pooled if checkpoint.family.size_conditioned else None)
    if checkpoint.zero_empty_prompt and "" in distinct:
        told.states[distinct.index("")] = 0
        if told.pooled is not None:
            told.pooled[distinct.index("")] = 0
    return told[torch.tensor([distinct.index(t) for t in texts], device=told.states.device)]
