"""The peer: diffusers' own pipelines over the same files, asked for the same pictures in the fastest way that is correct.

What its pipelines take once a call (references, scale, window, guidance, size, steps) requests must share to go into
one call; those that do go together. References come as embeddings, the weights stay in place, no bar is drawn. A
window is set by its callback between two steps, as there is no argument for one.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import inside
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.schedulers import SCHEDULERS


@dataclass(frozen=True)
class Made:
    """latents float32 (channels, h, w), those that the picture was decoded from."""

    image: Image.Image
    latents: np.ndarray


class Diffusers:
    """A pipeline of a folder with its base adapter. It reads sizes and defaults from our engine, and nothing else."""

    def __init__(self, base: Path, adapter: Path, engine: Engine) -> None:
        checkpoint = engine.checkpoint
        kind = StableDiffusionXLPipeline if engine.family.size_conditioned else StableDiffusionPipeline
        self.engine, self.device, self.dtype = engine, checkpoint.unet.device, checkpoint.unet.dtype
        told = diffusers_logging.get_verbosity()
        diffusers_logging.set_verbosity_error()  # it warns of what it wrote itself into an AutoencoderTiny's folder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe: Any = kind.from_pretrained(base, local_files_only=True, torch_dtype=self.dtype)
            pipe.load_ip_adapter(
                str(adapter.parent), subfolder="", weight_name=adapter.name, image_encoder_folder=None,
                local_files_only=True,
            )  # fmt: skip
        diffusers_logging.set_verbosity(told)
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe.to(self.device)
        for part in (pipe.unet, pipe.vae):
            part.to(memory_format=torch.channels_last)  # as its documentation advises, and as ours
        self._scheduler_config = pipe.scheduler.config
        assert checkpoint.adapter is not None
        self.dim = checkpoint.adapter.embed_dim
        self._sizes = (int(checkpoint.unet.config["in_channels"]), checkpoint.stride)

    def make(self, requests: Sequence[GenerationRequest], max_batch: int) -> list[Made]:
        """One picture a request, in their order."""
        groups: dict[Hashable, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self._shared(request), []).append(i)
        made: dict[int, Made] = {}
        for rows in groups.values():
            for start in range(0, len(rows), max_batch):
                part = rows[start : start + max_batch]
                made.update(zip(part, self._call([requests[i] for i in part]), strict=True))
        return [made[i] for i in range(len(requests))]

    def _shared(self, request: GenerationRequest) -> Hashable:
        """What requests of one call must have in common."""
        if any(r.weight != 1 for r in request.references):
            raise ValueError("diffusers' pipelines have no weight a reference")
        heard = tuple(id(r.embedding) for r in request.references)
        spoken = (request.scale, request.window) if heard else ()
        return (heard, *spoken, request.guidance, self.engine.batch_key(request))

    @torch.inference_mode()
    def _call(self, requests: list[GenerationRequest]) -> list[Made]:
        first, key = requests[0], self.engine.batch_key(requests[0])
        self.pipe.scheduler = SCHEDULERS[key.scheduler].from_config(self._scheduler_config)
        channels, stride = self._sizes
        shape = (channels, key.height_px // stride, key.width_px // stride)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(r.seed)) for r in requests]
        guidance = self.engine.family.guidance if first.guidance is None else first.guidance
        last: dict[str, torch.Tensor] = {}

        def stepped(pipe: Any, step: int, time: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if step + 1 == key.steps:
                last.update(tensors)
            elif first.references and first.window != (0.0, 1.0):
                self._speak(first, (step + 1) / key.steps)
            return {}

        self._speak(first, 0.0)
        pictures = self.pipe(
            prompt=[r.prompt for r in requests],
            negative_prompt=[r.negative_prompt for r in requests] if any(r.negative_prompt for r in requests) else None,
            width=key.width_px,
            height=key.height_px,
            num_inference_steps=key.steps,
            guidance_scale=guidance,
            latents=torch.stack(noise).to(self.device, self.dtype),
            ip_adapter_image_embeds=[self._embeddings(first, len(requests), guided=guidance > 1)],
            callback_on_step_end=stepped,
        ).images
        latents = last["latents"].float().cpu().numpy()
        return [Made(picture, x) for picture, x in zip(pictures, latents, strict=True)]

    def _speak(self, request: GenerationRequest, progress: float) -> None:
        """At scale 0 its attention leaves the image out: so are requests without references made."""
        heard = bool(request.references) and inside(request.window, progress)
        self.pipe.set_ip_adapter_scale(request.scale if heard else 0.0)

    def _embeddings(self, request: GenerationRequest, rows: int, *, guided: bool) -> torch.Tensor:
        """(rows, references, dim), with guidance the negative ones, zeros, before them."""
        shown = [r.embedding for r in request.references] or [np.zeros(self.dim, np.float32)]
        one = torch.from_numpy(np.stack(shown)).to(self.device, self.dtype)  # type: ignore[arg-type]
        positive = one[None].repeat(rows, 1, 1)
        return torch.cat([torch.zeros_like(positive), positive]) if guided else positive
