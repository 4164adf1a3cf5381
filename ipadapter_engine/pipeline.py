"""From requests to pictures: text, references, noise, denoising and decoding of one batch after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from ipadapter_engine.batching import check_adapters, check_references, grouped, image_conditioning, key_of
from ipadapter_engine.characters import Characters
from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths, TextEncoder, open_checkpoint
from ipadapter_engine.controlnets import check_controls, control_conditioning, summed_residuals
from ipadapter_engine.encoder import EncodedPicture, ImageEncoder
from ipadapter_engine.errors import GenerationFailed, RequestRefused
from ipadapter_engine.families import Family
from ipadapter_engine.hashing import ModelHash
from ipadapter_engine.prompts import IDENTITY, CharacterModel, ReferencePrompt
from ipadapter_engine.requests import BatchKey, GeneratedImage, GenerationRequest

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
        further = {name: adapter.by_number() for name, adapter in checkpoint.further.items()}
        self._installed = Installed(checkpoint.unet, layers, further)
        self._in_controls = {kind: Installed(net.model) for kind, net in checkpoint.controls.items()}
        self._characters = Characters(
            checkpoint.unet, [t.model for t in checkpoint.text], base=checkpoint.models[0].name
        )
        self._lock = threading.Lock()
        self._negative: dict[str, Tensor] = {}

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
        """What every picture comes from; `models_of` adds what one request asks for besides."""
        return self.checkpoint.models

    def models_of(self, request: GenerationRequest) -> tuple[ModelHash, ...]:
        """All models that have a part in a request's picture: `models`, then those that it needs beside them
        (`GenerationRequest.roles`) and its character model; what is at 0 has none.

        Nothing is loaded for it: a character model's sha256 is the request's, verified when it is made.
        """
        named = tuple(self.checkpoint.beside[role] for role in request.roles if role in self.checkpoint.beside)
        character = request.heard_character
        if character is None:
            return (*self.models, *named)
        licence = "as the references that it was trained on"
        return (*self.models, *named, ModelHash("character", character.file.name, character.sha256, licence))

    @property
    def encoder(self) -> ImageEncoder:
        """The image encoder that this checkpoint's references must be embedded with."""
        if self.checkpoint.encoder is None:
            raise RequestRefused("this checkpoint has no image encoder", "set ONMODEL_ENGINE__ENCODER")
        return self.checkpoint.encoder

    @property
    def needs_hidden(self) -> bool:
        """Whether a loaded adapter reads hidden states (plus adapters): then references are to be encoded with them."""
        return any(self.reads_hidden(name) for name in self.checkpoint.adapters)

    def reads_hidden(self, adapter: str) -> bool:
        """Whether a reference that names this adapter is hidden states and not a pooled embedding."""
        loaded = self.checkpoint.adapters.get(adapter)
        return loaded is not None and not loaded.pooled

    def reference(self, encoded: EncodedPicture, weight: float = 1.0, adapter: str = IDENTITY) -> ReferencePrompt:
        """The part of an encoder's output that an adapter reads."""
        embedding = encoded.hidden if self.reads_hidden(adapter) else encoded.pooled
        if embedding is None:
            raise RequestRefused("this adapter needs hidden states", "encode the reference with hidden=True")
        return ReferencePrompt(embedding, weight, adapter)

    def look_at(self, picture: Image.Image, weight: float = 1.0, adapter: str = IDENTITY) -> ReferencePrompt:
        """Encode one picture as a reference."""
        return self.reference(self.encoder.encode([picture], hidden=self.reads_hidden(adapter))[0], weight, adapter)

    def batch_key(self, request: GenerationRequest) -> BatchKey:
        """What a request must share with others to be made in one batch; raises RequestRefused."""
        return key_of(request, self.family, self.checkpoint.multiple_px)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_batch: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[GeneratedImage]:
        """One picture a request, in their order. Any mix of prompts, references, scales, controls, seeds and sizes.

        on_step(done, all) is called after every denoising step of a batch.
        Raises RequestRefused, and CheckpointRefused for a character model, before anything is made;
        GenerationFailed when memory runs out.
        """
        size = max_batch or self.family.max_batch
        batches = list(grouped(requests, self.family, self.checkpoint.multiple_px, size))
        check_adapters(requests, self.checkpoint.adapters)
        for name, adapter in self.checkpoint.adapters.items():
            if any(name in r.adapters for r in requests):
                check_references(requests, name, adapter, self._unconditional(name))
        for key, rows in batches:
            for i in rows:
                check_controls(requests[i], key, self.checkpoint.controls)
        made: dict[int, GeneratedImage] = {}
        with self._lock:
            try:
                for _, rows in batches:
                    if (character := requests[rows[0]].heard_character) is not None:
                        self._load(character)
                for key, rows in batches:
                    with (
                        _enough_memory(f"on a batch of {len(rows)}", "lower ONMODEL_ENGINE__MAX_BATCH"),
                        self._characters.playing(requests[rows[0]].heard_character),
                    ):
                        pictures = self._make([requests[i] for i in rows], key, on_step)
                    made.update(zip(rows, pictures, strict=True))
            finally:
                self._characters.trim()
        return [made[i] for i in range(len(requests))]

    def load_character(self, character: CharacterModel) -> float:
        """Load a character model before a request asks for it: the seconds that it took.

        Raises CheckpointRefused; GenerationFailed when memory runs out.
        """
        with self._lock:
            began = time.perf_counter()
            self._load(character)
            self._characters.trim()
            return time.perf_counter() - began

    def _load(self, character: CharacterModel) -> None:
        with _enough_memory(f"while {character.file.name} was loaded", "ask for fewer character models in one call"):
            self._characters.load(character)

    def close(self) -> None:
        """Take our attention out of the UNet and the ControlNets: the UNet is then as it was opened. A ControlNet stays
        without the embedding of its pictures, which `open_control_net` took out of it."""
        for installed in (self._installed, *self._in_controls.values()):
            installed.eject()

    # ------------------------------------------------------------------ one batch

    @torch.inference_mode()
    def _make(
        self, requests: list[GenerationRequest], key: BatchKey, on_step: Callable[[int, int], None] | None
    ) -> list[GeneratedImage]:
        unet = self.checkpoint.unet
        guidance = torch.tensor([self.family.guidance if r.guidance is None else r.guidance for r in requests])
        guided = bool((guidance != 1.0).any())
        text, added = self._text(requests, key, guided)
        prompts = {}
        for name, adapter in self.checkpoint.adapters.items():
            image = image_conditioning(requests, name, adapter, self._unconditional(name), guided=guided)
            if image is not None:
                prompts[name] = image
        possible = (control_conditioning(requests, key, net, text, added) for net in self.checkpoint.controls.values())
        controls = [c for c in possible if c is not None]

        scheduler = SCHEDULERS[key.scheduler].from_config(self.checkpoint.scheduler_config)
        scheduler.set_timesteps(key.steps, device=unet.device)
        x = self._noise(requests, key) * scheduler.init_noise_sigma
        weight = guidance.to(x).view(-1, 1, 1, 1)
        conditioning = Conditioning()
        steps = len(scheduler.timesteps)
        with ExitStack() as held:
            held.enter_context(self._installed.slot.holding(conditioning))
            for control in controls:
                held.enter_context(self._in_controls[control.net.kind].slot.holding(Conditioning()))
            for i, t in enumerate(scheduler.timesteps):
                heard = {name: now for name, image in prompts.items() if (now := image.at(i / steps)) is not None}
                conditioning.image = heard.pop(IDENTITY, None)
                conditioning.further = heard
                both = scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t).to(unet.dtype)
                steered = summed_residuals(controls, both, t, i / steps)
                guess = unet(both, t, encoder_hidden_states=text, added_cond_kwargs=added, **steered).sample.float()
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
        """As diffusers' pipelines decode: divided by the first stage's scaling factor, SDXL's spread and mean first."""
        vae, config = self.checkpoint.vae, self.checkpoint.vae.config
        mean, spread = (
            torch.tensor(config.get(name) or blank, device=latents.device).view(1, -1, 1, 1)
            for name, blank in (("latents_mean", [0.0]), ("latents_std", [1.0]))
        )
        pictures = vae.decode((latents * spread / config["scaling_factor"] + mean).to(vae.dtype)).sample.float()
        scaled = ((pictures / 2 + 0.5).nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = scaled.permute(0, 2, 3, 1).cpu().numpy()
        return [GeneratedImage(r, p, x) for r, p, x in zip(requests, pixels, latents.cpu().numpy(), strict=True)]

    def _unconditional(self, name: str) -> Tensor:
        """What the unconditional half hears of an adapter: zeros for base, an encoded zero picture for plus."""
        if name not in self._negative:
            adapter = self.checkpoint.adapters[name]
            like = next(adapter.parameters())
            if adapter.pooled:
                self._negative[name] = torch.zeros(adapter.embed_dim, device=like.device, dtype=like.dtype)
            else:
                self._negative[name] = torch.from_numpy(self.encoder.zero_hidden()).to(like)
        return self._negative[name]

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


@contextmanager
def _enough_memory(where: str, next_step: str) -> Iterator[None]:
    """The GPU's out of memory error as ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GenerationFailed(f"the GPU ran out of memory {where}", next_step) from error


def _encode_text(part: TextEncoder, texts: list[str], layer: int | None) -> tuple[Tensor, Tensor | None]:
    length = min(part.tokenizer.model_max_length, part.model.config.max_position_embeddings)
    ids = part.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    out = part.model(ids["input_ids"].to(part.model.device), output_hidden_states=layer is not None)
    states = out.last_hidden_state if layer is None else out.hidden_states[layer]
    return states, getattr(out, "text_embeds", None)
