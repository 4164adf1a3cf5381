"""From requests to pictures: text, references, noise, denoising and decoding of one batch after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor

from ipadapter_engine.attention import Conditioning, Installed
from ipadapter_engine.batching import check_references, grouped, image_conditioning, key_of
from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths, TextEncoder, open_checkpoint
from ipadapter_engine.encoder import EncodedPicture, ImageEncoder
from ipadapter_engine.errors import GenerationFailed, RequestRefused
from ipadapter_engine.families import Family
from ipadapter_engine.hashing import ModelHash
from ipadapter_engine.requests import BatchKey, GeneratedImage, GenerationRequest, ReferencePrompt

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


class Engine:
    """An open checkpoint that makes pictures. One generation at a time; calls from other threads wait."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        layers = checkpoint.adapter.by_number() if checkpoint.adapter is not None else None
        self._installed = Installed(checkpoint.unet, layers)
        self._lock = threading.Lock()
        self._negative: Tensor | None = None

    @classmethod
    def open(
        cls, paths: CheckpointPaths | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Engine:
        """Open a checkpoint; by default the embedded studio model. Raises CheckpointRefused."""
        return cls(open_checkpoint(paths or CheckpointPaths(), device=device, dtype=dtype))

    @property
    def family(self) -> Family:
        return self.checkpoint.family

    @property
    def models(self) -> tuple[ModelHash, ...]:
        return self.checkpoint.models

    @property
    def encoder(self) -> ImageEncoder:
        """The image encoder that this checkpoint's references must be embedded with."""
        if self.checkpoint.encoder is None:
            raise RequestRefused("this checkpoint has no image encoder", "set ONMODEL_ENGINE__ENCODER")
        return self.checkpoint.encoder

    @property
    def needs_hidden(self) -> bool:
        """Whether references are hidden states (plus adapters) and not pooled embeddings."""
        return self.checkpoint.adapter is not None and not self.checkpoint.adapter.pooled

    def reference(self, encoded: EncodedPicture, weight: float = 1.0) -> ReferencePrompt:
        """The part of an encoder's output that this checkpoint's adapter reads."""
        embedding = encoded.hidden if self.needs_hidden else encoded.pooled
        if embedding is None:
            raise RequestRefused("this adapter needs hidden states", "encode the reference with hidden=True")
        return ReferencePrompt(embedding, weight)

    def look_at(self, picture: Image.Image, weight: float = 1.0) -> ReferencePrompt:
        """Encode one picture as a reference."""
        return self.reference(self.encoder.encode([picture], hidden=self.needs_hidden)[0], weight)

    def batch_key(self, request: GenerationRequest) -> BatchKey:
        """What a request must share with others to be made in one batch; raises RequestRefused."""
        return key_of(request, self.family, self.checkpoint.stride)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_batch: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[GeneratedImage]:
        """One picture a request, in their order. Any mix of prompts, references, scales, seeds and sizes.

        on_step(done, all) is called after every denoising step of a batch.
        Raises RequestRefused before anything is made, GenerationFailed when memory runs out.
        """
        batches = list(grouped(requests, self.family, self.checkpoint.stride, max_batch or self.family.max_batch))
        if any(r.references for r in requests):
            if self.checkpoint.adapter is None:
                raise RequestRefused(
                    "a request has references, but no adapter is loaded", "set ONMODEL_ENGINE__ADAPTER"
                )
            check_references(requests, self.checkpoint.adapter, self._unconditional())
        made: dict[int, GeneratedImage] = {}
        with self._lock:
            for key, rows in batches:
                try:
                    pictures = self._make([requests[i] for i in rows], key, on_step)
                except torch.OutOfMemoryError as error:
                    raise GenerationFailed(
                        f"the GPU ran out of memory on a batch of {len(rows)}", "lower ONMODEL_ENGINE__MAX_BATCH"
                    ) from error
                made.update(zip(rows, pictures, strict=True))
        return [made[i] for i in range(len(requests))]

    def close(self) -> None:
        """Give the UNet back as it was."""
        self._installed.eject()

    # ------------------------------------------------------------------ one batch

    @torch.inference_mode()
    def _make(
        self, requests: list[GenerationRequest], key: BatchKey, on_step: Callable[[int, int], None] | None
    ) -> list[GeneratedImage]:
        unet = self.checkpoint.unet
        guidance = torch.tensor([self.family.guidance if r.guidance is None else r.guidance for r in requests])
        guided = bool((guidance != 1.0).any())
        text, added = self._text(requests, key, guided)
        image = None
        if self.checkpoint.adapter is not None:
            image = image_conditioning(requests, self.checkpoint.adapter, self._unconditional(), guided=guided)

        scheduler = SCHEDULERS[key.scheduler].from_config(self.checkpoint.scheduler_config)
        scheduler.set_timesteps(key.steps, device=unet.device)
        x = self._noise(requests, key) * scheduler.init_noise_sigma
        weight = guidance.to(x).view(-1, 1, 1, 1)
        conditioning = Conditioning()
        steps = len(scheduler.timesteps)
        with self._installed.slot.holding(conditioning):
            for i, t in enumerate(scheduler.timesteps):
                conditioning.image = image.at(i / steps) if image is not None else None
                both = scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t)
                guess = unet(both.to(unet.dtype), t, encoder_hidden_states=text, added_cond_kwargs=added).sample.float()
                if guided:
                    empty, full = guess.chunk(2)
                    guess = empty + weight * (full - empty)
                x = scheduler.step(guess, t, x).prev_sample
                if on_step is not None:
                    on_step(i + 1, steps)
        return self._decoded(requests, x)

    def _noise(self, requests: list[GenerationRequest], key: BatchKey) -> Tensor:
        """(rows, channels, h, w) float32, each row from its own seed, drawn on the CPU."""
        stride = self.checkpoint.stride
        shape = (int(self.checkpoint.unet.config["in_channels"]), key.height_px // stride, key.width_px // stride)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(r.seed)) for r in requests]
        return torch.stack(rows).to(self.checkpoint.unet.device)

    def _decoded(self, requests: list[GenerationRequest], latents: Tensor) -> list[GeneratedImage]:
        vae, config = self.checkpoint.vae, self.checkpoint.vae.config
        mean, spread = (
            torch.tensor(config.get(name) or blank, device=latents.device).view(1, -1, 1, 1)
            for name, blank in (("latents_mean", [config.get("shift_factor") or 0.0]), ("latents_std", [1.0]))
        )
        pictures = vae.decode((latents * spread / config["scaling_factor"] + mean).to(vae.dtype)).sample.float()
        scaled = ((pictures / 2 + 0.5).nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = scaled.permute(0, 2, 3, 1).cpu().numpy()
        return [GeneratedImage(r, p, x) for r, p, x in zip(requests, pixels, latents.cpu().numpy(), strict=True)]

    def _unconditional(self) -> Tensor:
        """What the unconditional half's image branch sees: zeros for base, an encoded zero picture for plus."""
        if self._negative is None:
            adapter = self.checkpoint.adapter
            assert adapter is not None
            like = next(adapter.parameters())
            if adapter.pooled:
                self._negative = torch.zeros(adapter.embed_dim, device=like.device, dtype=like.dtype)
            else:
                self._negative = torch.from_numpy(self.encoder.zero_hidden()).to(like)
        return self._negative

    def _text(
        self, requests: list[GenerationRequest], key: BatchKey, guided: bool
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Text states (rows, tokens, width), unconditional rows first, and what SDXL's UNet is told besides."""
        prompts = [r.negative_prompt for r in requests] * guided + [r.prompt for r in requests]
        distinct = list(dict.fromkeys(prompts))
        states, pooled = self._encoded_texts(distinct)
        rows = torch.tensor([distinct.index(p) for p in prompts], device=states.device)
        states = states[rows]
        if guided and self.checkpoint.zero_empty_prompt:
            blank = [i for i, r in enumerate(requests) if not r.negative_prompt]
            states[blank] = 0
            if pooled is not None:
                pooled = pooled[rows]
                pooled[blank] = 0
        elif pooled is not None:
            pooled = pooled[rows]
        if not self.family.size_conditioned:
            return states, None
        assert pooled is not None
        sizes = torch.tensor([[key.height_px, key.width_px, 0, 0, key.height_px, key.width_px]])
        return states, {
            "text_embeds": pooled,
            "time_ids": sizes.repeat(len(prompts), 1).to(states.device, states.dtype),
        }

    def _encoded_texts(self, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        outs = [_encode_text(part, texts, self.family.text_layer) for part in self.checkpoint.text]
        return torch.cat([states for states, _ in outs], dim=-1), outs[-1][1]


def _encode_text(part: TextEncoder, texts: list[str], layer: int | None) -> tuple[Tensor, Tensor | None]:
    length = min(part.tokenizer.model_max_length, part.model.config.max_position_embeddings)
    ids = part.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    out = part.model(ids["input_ids"].to(part.model.device), output_hidden_states=layer is not None)
    states = out.last_hidden_state if layer is None else out.hidden_states[layer]
    return states, getattr(out, "text_embeds", None)


def text_only(request: GenerationRequest) -> GenerationRequest:
    """The same request without its references: the control that shows what the adapter adds."""
    return replace(request, references=(), scale=0.0)
