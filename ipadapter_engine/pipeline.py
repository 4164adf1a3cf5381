"""From requests to pictures: text, references, noise, denoising and decoding of one batch after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipadapter_engine import registry
from ipadapter_engine.acceleration import Acceleration, Residence
from ipadapter_engine.attention import Installed
from ipadapter_engine.batching import grouped, key_of
from ipadapter_engine.characters import Characters
from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.controlnets import check_controls, control_conditioning
from ipadapter_engine.decoding import Decoder, DecodingBeside
from ipadapter_engine.denoising import Told, denoised
from ipadapter_engine.encoder import EncodedPicture, ImageEncoder
from ipadapter_engine.errors import GenerationFailed, RequestRefused
from ipadapter_engine.families import Family
from ipadapter_engine.hashing import ModelHash
from ipadapter_engine.image_prompts import Nothing, check_adapters, check_references, check_regions, image_prompts
from ipadapter_engine.memory import MemoryBudget, in_batches
from ipadapter_engine.projections import Reads
from ipadapter_engine.prompts import IDENTITY, Array, CharacterModel, ReferencePrompt
from ipadapter_engine.requests import BatchKey, GeneratedImage, GenerationRequest
from ipadapter_engine.schedulers import scheduler_for
from ipadapter_engine.sources import check_source, sources_of
from ipadapter_engine.texts import text_conditioning

_AS_IT_IS = Acceleration()


class Engine:
    """An open checkpoint that makes pictures. One generation at a time; calls from other threads wait."""

    def __init__(self, checkpoint: Checkpoint, acceleration: Acceleration = _AS_IT_IS) -> None:
        self.checkpoint, self.acceleration = checkpoint, acceleration
        self._residence = Residence(checkpoint.device, offload=acceleration.offload)
        layers = checkpoint.adapter.by_number() if checkpoint.adapter is not None else None
        further = {name: adapter.by_number() for name, adapter in checkpoint.further.items()}
        self._installed = Installed(checkpoint.unet, layers, further)
        self._in_controls = {kind: Installed(net.model) for kind, net in checkpoint.controls.items()}
        self._characters = Characters(
            checkpoint.unet, [t.model for t in checkpoint.text], base=checkpoint.models[0].name,
            adapters=checkpoint.adapters,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._nothing: dict[str, Nothing] = {}
        self._taken: set[tuple[str, int]] = set()  # schedulers and steps that were found to go together
        self._memory = MemoryBudget(checkpoint.device)
        self._decoder = Decoder(checkpoint, self._residence)
        self._changed = acceleration.apply(checkpoint)

    @classmethod
    def open(
        cls,
        paths: CheckpointPaths | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        acceleration: Acceleration = _AS_IT_IS,
    ) -> Engine:
        """Open a checkpoint; by default the embedded studio model. Raises CheckpointRefused."""
        opened = open_checkpoint(paths or CheckpointPaths(), device=device, dtype=dtype, offload=acceleration.offload)
        return cls(opened, acceleration)

    @property
    def family(self) -> Family:
        return self.checkpoint.family

    @property
    def models(self) -> tuple[ModelHash, ...]:
        """What every picture comes from; `models_of` adds what one request asks for besides."""
        return self.checkpoint.models

    def models_of(self, request: GenerationRequest) -> tuple[ModelHash, ...]:
        """All models that have a part in a request's picture: `models`, then those that it needs beside them
        (`Checkpoint.roles_of`), its character model and its LoRAs; what is at 0 has none.

        Nothing is loaded for it: the sha256 of a LoRA is the request's, verified when it is made.
        """
        roles, beside = self.checkpoint.roles_of(request), self.checkpoint.beside
        return (*self.models, *(beside[role] for role in roles if role in beside), *map(_model_of, _loras(request)))

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
        """The part of an encoder's output that an adapter reads; RequestRefused for one that reads faces."""
        if (reads := self._reads(adapter)) is not None and reads.face:
            raise RequestRefused(
                f"the adapter {adapter!r} reads faces", "give what a face model says of the picture to `face_reference`"
            )
        embedding = encoded.hidden if self.reads_hidden(adapter) else encoded.pooled
        if embedding is None:
            raise RequestRefused("this adapter needs hidden states", "encode the reference with hidden=True")
        return ReferencePrompt(embedding, weight, adapter)

    def look_at(self, picture: Image.Image, weight: float = 1.0, adapter: str = IDENTITY) -> ReferencePrompt:
        """Encode one picture as a reference."""
        return self.reference(self.encoder.encode([picture], hidden=self.reads_hidden(adapter))[0], weight, adapter)

    def look_at_all_of(
        self, picture: Image.Image, weight: float = 1.0, adapter: str = IDENTITY
    ) -> tuple[ReferencePrompt, ...]:
        """Encode one picture that is far from square as tiles side by side, so that nothing is cropped away."""
        tiles = self.encoder.encode_tiled(picture, hidden=self.reads_hidden(adapter))
        return tuple(self.reference(tile, weight / len(tiles), adapter) for tile in tiles)

    def face_reference(
        self, face: Array, encoded: EncodedPicture | None = None, weight: float = 1.0, adapter: str = IDENTITY
    ) -> ReferencePrompt:
        """A reference of a FaceID adapter: face (512,) by ArcFace, brought to length 1 where the adapter wants it.

        encoded: what the encoder says of the aligned face, with hidden states; FaceID Plus reads it besides.
        """
        reads = self._reads(adapter)
        if reads is None or not reads.face:
            raise RequestRefused(f"the adapter {adapter!r} reads no faces", "load a FaceID adapter, or use `look_at`")
        vector = np.asarray(face, dtype=np.float32)
        length = float(np.linalg.norm(vector))
        if length == 0:
            raise RequestRefused("the embedding of a face is all zeros", "embed the face again")
        vector = vector / length if reads.unit_face else vector
        if reads.kind == "face":
            return ReferencePrompt(vector, weight, adapter)
        if encoded is None or encoded.hidden is None:
            raise RequestRefused(
                f"the adapter {adapter!r} reads hidden states beside the face",
                "encode the aligned face with hidden=True",
            )
        return ReferencePrompt(encoded.hidden, weight, adapter, face=vector)

    def _reads(self, adapter: str) -> Reads | None:
        loaded = self.checkpoint.adapters.get(adapter)
        return None if loaded is None else loaded.reads

    def batch_key(self, request: GenerationRequest) -> BatchKey:
        """What a request must share with others to be made in one batch; raises RequestRefused."""
        key = key_of(request, self.family, self.checkpoint.multiple_px, self._characters.adapters)
        self._check_steps(key)
        return key

    def _check_steps(self, key: BatchKey) -> None:
        """Raises RequestRefused for steps that the scheduler cannot take; asked once, as many shots share them."""
        if (key.scheduler, key.steps) not in self._taken:
            scheduler_for(self.checkpoint, key)
            self._taken.add((key.scheduler, key.steps))

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
        groups = grouped(requests, self.family, self.checkpoint.multiple_px, self._characters.adapters)
        self._check(requests, groups)
        made: dict[int, GeneratedImage] = {}
        with self._lock, DecodingBeside(self._decoder.pictures, beside=self._decodes_beside) as decoding:
            try:
                for rows in groups.values():
                    for lora in requests[rows[0]].heard_loras:
                        self._load(lora)
                for key, rows in groups.items():
                    budget = self._memory.of(
                        key, most=max_batch or self.family.max_batch, pixels=key.width_px * key.height_px
                    )

                    def make(part: Sequence[int], key: BatchKey = key) -> Sequence[int]:
                        mine = [requests[i] for i in part]
                        with self._characters.playing(mine[0].heard_loras, key.adapters):
                            latents = self._denoised(mine, key, on_step)
                        decoding.begin(part, mine, key, latents, made)
                        return part

                    in_batches(rows, make, budget)
                decoding.wait()
            finally:
                self._characters.trim()
        return [made[i] for i in range(len(requests))]

    @property
    def _decodes_beside(self) -> bool:
        """Not on a CPU: two batches on the same cores wait for each other at every step, longer than decoding takes."""
        return not self.acceleration.offload and self.checkpoint.device.type != "cpu"

    def _check(self, requests: Sequence[GenerationRequest], groups: Mapping[BatchKey, list[int]]) -> None:
        """Raises RequestRefused for what cannot be made, before anything is."""
        check_adapters(requests, self.checkpoint.adapters)
        for name, adapter in self.checkpoint.adapters.items():
            if any(name in (*r.adapters, *r.settings) for r in requests):
                nothing = self._unconditional(name)
                check_references(requests, name, adapter, nothing, self._installed.paths, self.family.presets)
        for key, rows in groups.items():
            self._check_steps(key)
            for i in rows:
                check_controls(requests[i], key, self.checkpoint.controls)
                check_regions(requests[i], key)
                check_source(requests[i], key, self.checkpoint)

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
        """Take our attention out of the UNet and the ControlNets, and taught words out of the text encoders: they are then
        as they were opened. A ControlNet stays without the embedding of its pictures, which `open_control_net` took out."""
        self._changed.undo()
        for installed in (self._installed, *self._in_controls.values()):
            installed.eject()
        self.checkpoint.words.eject()

    # ------------------------------------------------------------------ one batch

    @torch.inference_mode()
    def _denoised(
        self, requests: list[GenerationRequest], key: BatchKey, on_step: Callable[[int, int], None] | None
    ) -> Tensor:
        checkpoint = self.checkpoint
        guidance = torch.tensor([self.family.guidance if r.guidance is None else r.guidance for r in requests])
        each = [
            checkpoint.guidance_dim is None and w > 1 and r.guidance_window[0] < r.guidance_window[1]
            for w, r in zip(guidance.tolist(), requests, strict=True)
        ]
        guided = any(each)
        adapters, nets = checkpoint.adapters, checkpoint.controls
        generators = [torch.Generator().manual_seed(r.seed) for r in requests]
        at_work = self._residence.at_work
        with at_work(*(part.model for part in checkpoint.text)):
            text, added = text_conditioning(checkpoint, requests, key, guided=guided)
        with at_work(*adapters.values(), *(net.embedding for net in nets.values())):
            branches = image_prompts(
                requests, adapters, {name: self._unconditional(name) for name in adapters}, key=key,
                stride=checkpoint.stride, guided=each, paths=self._installed.paths, presets=self.family.presets,
            )  # fmt: skip
            possible = (control_conditioning(requests, key, net, text, added) for net in nets.values())
            controls = [c for c in possible if c is not None]
        with at_work(checkpoint.vae):
            sources = sources_of(checkpoint, requests, key, generators)
        told = Told(text, added, branches, controls, guidance, 1 + guided)
        with (
            at_work(checkpoint.unet, *adapters.values(), *(net.model for net in nets.values())),
            self.acceleration.kernels(),
        ):
            return denoised(
                checkpoint, self._installed, self._in_controls, requests, key, told, sources, generators, on_step
            )

    def _unconditional(self, name: str) -> Nothing:
        """What the unconditional half hears of an adapter, such as zeros for base, an encoded zero picture for plus."""
        if name not in self._nothing:
            embedding, face = self.checkpoint.adapters[name].nothing(lambda: self.encoder.zero_hidden())
            device = self.checkpoint.device
            self._nothing[name] = embedding.to(device), None if face is None else face.to(device)
        return self._nothing[name]


def _loras(request: GenerationRequest) -> list[tuple[str, CharacterModel]]:
    """The LoRAs that have a part in a request's picture, with the role that lineage names them by."""
    return [("character" if lora is request.character else "lora", lora) for lora in request.heard_loras]


def _model_of(named: tuple[str, CharacterModel]) -> ModelHash:
    role, lora = named
    if role == "character":
        licence = "as the references that it was trained on"
    else:
        licence = registry.licence_of(lora.file, lora.sha256) or "as its own, not told here"
    return ModelHash(role, lora.file.name, lora.sha256, licence)


@contextmanager
def _enough_memory(where: str, next_step: str) -> Iterator[None]:
    """The GPU's out of memory error as ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GenerationFailed(f"the GPU ran out of memory {where}", next_step) from error
