"""An engine whose pictures diffusers' own pipelines make, one request at a time.

Their transformers are large enough that one picture fills the device, and their pipelines take one set of references a
call: alone, each picture is the same in whatever company it was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image
from torch import Tensor

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.encoder import EncodedPicture, ImageEncoder
from ipadapter_engine.errors import GenerationFailed, RequestRefused
from ipadapter_engine.families import Family
from ipadapter_engine.hashing import ModelHash
from ipadapter_engine.native.adapters import NativeAdapter
from ipadapter_engine.native.opening import NativeCheckpoint, open_native
from ipadapter_engine.native.supporting import heard, key_of
from ipadapter_engine.prompts import IDENTITY, CharacterModel, ReferencePrompt
from ipadapter_engine.requests import BatchKey, GeneratedImage, GenerationRequest

OnStep = Callable[[int, int], None]


class NativeEngine:
    """An open folder that makes pictures. One at a time; calls from other threads wait."""

    def __init__(self, checkpoint: NativeCheckpoint) -> None:
        self.checkpoint = checkpoint
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        paths: CheckpointPaths,
        *,
        encoder: ImageEncoder | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> NativeEngine:
        """Open a folder, see `open_native`. Raises CheckpointRefused."""
        return cls(open_native(paths, encoder=encoder, device=device, dtype=dtype))

    @property
    def family(self) -> Family:
        return self.checkpoint.native.family

    @property
    def models(self) -> tuple[ModelHash, ...]:
        return self.checkpoint.models

    def models_of(self, request: GenerationRequest) -> tuple[ModelHash, ...]:
        """All models that have a part in a request's picture: these families load none beside the folder's."""
        return self.models

    @property
    def encoder(self) -> ImageEncoder:
        """What a library is read and pictures are checked with; references are not embedded by it for these families."""
        if self.checkpoint.encoder is None:
            raise RequestRefused(
                f"{self.family.title} was opened without a CLIP image encoder, which libraries are read with",
                "set its ENCODER, or make it one of ONMODEL_ENGINES beside the engine that reads libraries",
            )
        return self.checkpoint.encoder

    @property
    def needs_hidden(self) -> bool:
        return False

    def reads_hidden(self, adapter: str) -> bool:
        return False

    def reference(self, encoded: EncodedPicture, weight: float = 1.0, adapter: str = IDENTITY) -> ReferencePrompt:
        """A reference by its embedding alone, for FLUX.1 with an IP-Adapter. Raises RequestRefused for all others."""
        own = self.checkpoint.adapter
        if own is None or len(own.shape) > 1:
            raise RequestRefused(f"{self.family.title} reads pictures, not embeddings", "give the reference's picture")
        return ReferencePrompt(encoded.pooled, weight, adapter)

    def look_at(self, picture: Image.Image, weight: float = 1.0, adapter: str = IDENTITY) -> ReferencePrompt:
        """A reference as these families take it: its pixels."""
        return ReferencePrompt(None, weight, adapter, picture=np.array(picture.convert("RGB")))

    def batch_key(self, request: GenerationRequest) -> BatchKey:
        """The numbers that it is made by; raises RequestRefused for whatever the family does not have."""
        checkpoint = self.checkpoint
        key = key_of(request, checkpoint.native, checkpoint.multiple_px, adapter=checkpoint.adapter is not None)
        if checkpoint.adapter is not None:
            _check_embeddings(heard(request), checkpoint.adapter)
        return key

    def generate(
        self, requests: Sequence[GenerationRequest], *, max_batch: int | None = None, on_step: OnStep | None = None
    ) -> list[GeneratedImage]:
        """One picture a request, in their order; max_batch changes nothing, as each is made by itself.

        on_step(done, all) is called after every denoising step of a picture.
        Raises RequestRefused before anything is made; GenerationFailed when memory runs out.
        """
        keys = [self.batch_key(request) for request in requests]
        with self._lock:
            return [self._make(request, key, on_step) for request, key in zip(requests, keys, strict=True)]

    def load_character(self, character: CharacterModel) -> float:
        raise RequestRefused(
            f"{self.family.title} has no model of a character here",
            "show it references, or use a Stable Diffusion 1.5 or SDXL base for it",
        )

    def close(self) -> None:
        """Nothing of ours is in the pipeline."""

    # ------------------------------------------------------------------ one picture

    def _make(self, request: GenerationRequest, key: BatchKey, on_step: OnStep | None) -> GeneratedImage:
        pipeline, last = self.checkpoint.pipeline, {}

        def stepped(_: Any, step: int, __: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
            last["latents"] = given["latents"]
            if on_step is not None:
                on_step(step + 1, key.steps)
            return given

        told = logging.get_verbosity()
        logging.set_verbosity_error()  # it warns of what it does with arguments that are given on purpose
        try:
            with torch.inference_mode():
                made = pipeline(
                    prompt=request.prompt, width=key.width_px, height=key.height_px, num_inference_steps=key.steps,
                    latents=self._noise(request, key), max_sequence_length=self.checkpoint.native.text_tokens,
                    output_type="pt", callback_on_step_end=stepped, **self._guidance(request), **self._shown(request),
                    **self._sized(key),
                ).images[0]  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise GenerationFailed("the GPU ran out of memory on one picture", "ask for a smaller size") from error
        finally:
            logging.set_verbosity(told)
        pixels = (made.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
        latents = self._unpacked(last["latents"], key)
        return GeneratedImage(request, pixels.permute(1, 2, 0).cpu().numpy(), latents.float().cpu().numpy())

    def _noise(self, request: GenerationRequest, key: BatchKey) -> Tensor:
        """As the pipeline would draw it from the request's seed on the CPU, in its own layout, in float32."""
        pipeline, shape = self.checkpoint.pipeline, self._latent_shape(key)
        random = torch.Generator().manual_seed(request.seed)
        channels, height, width = shape
        match self.checkpoint.native.pipeline:
            case "StableDiffusion3Pipeline":
                return torch.randn((1, *shape), generator=random)
            case "Flux2Pipeline" | "Flux2KleinPipeline":
                return torch.randn((1, channels * 4, height // 2, width // 2), generator=random)
        noise = torch.randn((1, *shape), generator=random)
        return pipeline._pack_latents(noise, 1, channels, height, width)

    def _latent_shape(self, key: BatchKey) -> tuple[int, int, int]:
        pipeline, vae = self.checkpoint.pipeline, self.checkpoint.pipeline.vae.config
        channels = int(vae["z_dim"] if "z_dim" in vae else vae["latent_channels"])
        return channels, key.height_px // pipeline.vae_scale_factor, key.width_px // pipeline.vae_scale_factor

    def _unpacked(self, latents: Tensor, key: BatchKey) -> Tensor:
        """(channels, height / stride, width / stride)."""
        pipeline = self.checkpoint.pipeline
        channels, height, width = self._latent_shape(key)
        match self.checkpoint.native.pipeline:
            case "StableDiffusion3Pipeline":
                return latents[0]
            case "Flux2Pipeline" | "Flux2KleinPipeline":
                grid = latents.permute(0, 2, 1).reshape(1, channels * 4, height // 2, width // 2)
                return pipeline._unpatchify_latents(grid)[0]
        unpacked = pipeline._unpack_latents(latents, key.height_px, key.width_px, pipeline.vae_scale_factor)
        return unpacked.reshape(channels, height, width)

    def _guidance(self, request: GenerationRequest) -> dict[str, Any]:
        native = self.checkpoint.native
        guidance = native.family.guidance if request.guidance is None else request.guidance
        if native.pipeline.startswith("QwenImageEdit"):  # guided only where a negative prompt is given, if a blank one
            return {"true_cfg_scale": guidance, "negative_prompt": request.negative_prompt or " "}
        return {"guidance_scale": guidance} | (
            {"negative_prompt": request.negative_prompt} if native.negative_prompt else {}
        )

    def _shown(self, request: GenerationRequest) -> dict[str, Any]:
        """The request's references in the pipeline's own arguments."""
        native, references = self.checkpoint.native, heard(request)
        if native.sees:
            pictures = [Image.fromarray(r.picture) for r in references if r.picture is not None]
            if not pictures:
                return {}
            return {"image": pictures[0] if native.sees == 1 else pictures}
        adapter = self.checkpoint.adapter
        if adapter is None:
            return {}
        self.checkpoint.pipeline.set_ip_adapter_scale(request.scale if references else 0.0)
        seen = self._stacked(references, adapter)
        if native.adapter == 1:  # SD3's attention goes without, and wants the unconditional half first
            guided = (native.family.guidance if request.guidance is None else request.guidance) > 1
            both = torch.cat([torch.zeros_like(seen), seen]) if guided else seen
            return {"ip_adapter_image_embeds": both} if references else {}
        nothing = [torch.zeros_like(seen)]  # no second pass hears it; the pipeline would encode a black picture
        return {"ip_adapter_image_embeds": [seen[None]], "negative_ip_adapter_image_embeds": nothing}

    def _stacked(self, references: Iterable[ReferencePrompt], adapter: NativeAdapter) -> Tensor:
        """What the adapter hears, (references, …); FLUX.1's attention must be given something: zeros for nothing."""
        arrays = [r.embedding if r.embedding is not None else adapter.embedding(_pixels(r)) for r in references]
        stack = np.stack(arrays or [np.zeros(adapter.shape)]).astype(np.float32)
        transformer = self.checkpoint.transformer
        return torch.from_numpy(stack).to(transformer.device, transformer.dtype)

    def _sized(self, key: BatchKey) -> dict[str, Any]:
        """Kontext's pipeline brings every size to an area, a megapixel unless it is told another."""
        kontext = self.checkpoint.native.pipeline == "FluxKontextPipeline"
        return {"max_area": key.width_px * key.height_px} if kontext else {}


def _pixels(reference: ReferencePrompt) -> np.ndarray:
    assert reference.picture is not None  # a reference has its embedding or its picture
    return reference.picture


def _check_embeddings(references: Iterable[ReferencePrompt], adapter: NativeAdapter) -> None:
    for reference in references:
        if reference.embedding is not None and reference.embedding.shape != adapter.shape:
            raise RequestRefused(
                f"a reference's embedding has shape {reference.embedding.shape}, the adapter reads {adapter.shape}",
                f"embed it with {adapter.sight.name}, or give its picture",
            )
