"""A model of one character: DreamBooth (Ruiz et al., 2022, arXiv:2208.12242) as LoRA on a frozen base.

The character's few references are learnt under a prompt with a rare word; pictures that the base itself makes of the
class are learnt beside them (prior preservation), so that the class does not turn into the character.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from ipadapter_engine.checkpoints import Checkpoint
from ipadapter_engine.hashing import sha256_of_file
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.training.errors import TrainingFailed, TrainingRefused
from ipadapter_engine.training.frozen import frozen
from ipadapter_engine.training.latents import Crop, check_framing, framed, latents_of, sizes_of, upright
from ipadapter_engine.training.loop import Weights, alone, fit
from ipadapter_engine.training.lora import lora_layers, save_lora
from ipadapter_engine.training.objective import Objective, TextStates, text_states
from ipadapter_engine.training.optimisation import Optimisation
from ipadapter_engine.training.sheets import Drawing, prompt_sheet

FEWEST, MOST = 3, 8
FILE_NAME = "character.safetensors"
CLASS_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class CharacterTraining(Optimisation):
    """subject: the class in a word or two. identifier: the rare word that comes to mean the character.

    rank, alpha: of the LoRA; alpha is the rank unless given. prior_weight: of the class pictures' loss; 0 does
    without. class_pictures: how many the base makes, `class_prompts` in turn, by default `a SUBJECT`.
    flips: mirror half of the references at random; not for characters with a left and a right.
    size_px: of the training; the family's own unless given. class_cache: where class pictures are kept.
    sheet_prompts, sheet_steps: of the sheets; by default the instance and the class prompt, and the family's steps.
    """

    steps: int = 500
    batch_size: int = 1
    subject: str = "character"
    identifier: str = "sks"
    rank: int = 8
    alpha: int | None = None
    prior_weight: float = 1.0
    class_pictures: int = 100
    class_prompts: tuple[str, ...] = ()
    class_cache: Path | None = None
    flips: bool = False
    size_px: int | None = None
    crop: Crop = "centre"
    snr_gamma: float | None = 5.0
    sheet_prompts: tuple[str, ...] = ()
    sheet_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if not self.identifier.strip() or not self.subject.strip():
            problems.append("identifier or subject is empty")
        if not 4 <= self.rank <= 16:
            problems.append(f"rank is {self.rank}, not from 4 to 16")
        if self.alpha is not None and self.alpha < 1:
            problems.append(f"alpha is {self.alpha}, below 1")
        if not 0 <= self.prior_weight < math.inf or (self.prior_weight and self.class_pictures < 1):
            problems.append(f"prior_weight is {self.prior_weight} with {self.class_pictures} class pictures")
        if problems:
            raise TrainingRefused("; ".join(problems), "correct the training's settings")

    @property
    def phrase(self) -> str:
        """What stands for the character in a prompt: `sks mascot`."""
        return f"{self.identifier} {self.subject}"

    @property
    def instance_prompt(self) -> str:
        return f"a {self.phrase}"

    @property
    def prior_prompts(self) -> tuple[str, ...]:
        return self.class_prompts or (f"a {self.subject}",)

    def determining(self) -> dict[str, object]:
        """The settings that determine the weights, as JSON."""
        aside = ("checkpoint_every", "log_every", "sheet_every", "sheet_prompts", "sheet_steps", "class_cache")
        plain = json.loads(json.dumps({k: v for k, v in asdict(self).items() if k not in aside}))
        return {**plain, "phrase": self.phrase}


@dataclass(frozen=True)
class TrainedCharacter:
    """The LoRA `file` in diffusers' layout; `losses` are (step, loss), `base` the hashes of what it was trained on."""

    file: Path
    sha256: str
    size_bytes: int
    seconds: float
    losses: tuple[tuple[int, float], ...]
    phrase: str
    base: dict[str, str]


def train_character(
    checkpoint: Checkpoint, references: Sequence[Image.Image], out: Path, settings: CharacterTraining,
    *, captions: Sequence[str] | None = None, on_step: Callable[[int, int], None] | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> TrainedCharacter:  # fmt: skip
    """Train a LoRA of a character on 3 to 8 references and save it as `out/character.safetensors`.

    captions: one a reference, in which the phrase may stand; by default the instance prompt for all.
    on_picture(done, all) is called after every batch of class pictures, on_step(done, all) after every step.
    Killed and started again it goes on from `out/character.ckpt`. The base is given back as it was.
    Raises TrainingRefused, also where it is being trained there, BaseChanged (nothing is saved then), TrainingFailed.
    """
    if not FEWEST <= len(references) <= MOST:
        raise TrainingRefused(
            f"{len(references)} references cannot be trained on", f"give {FEWEST} to {MOST} pictures of the character"
        )
    told = list(captions) if captions is not None else [settings.instance_prompt] * len(references)
    if len(told) != len(references):
        raise TrainingRefused(f"there are {len(told)} captions for {len(references)} references", "give one for each")
    settings.check_base(checkpoint.unet)
    size_px = settings.size_px or checkpoint.family.size_px
    check_framing(checkpoint, size_px, settings.crop)
    pictures = [upright(p) for p in references]
    with alone(out, "character"):
        with frozen(checkpoint, out / "character.ckpt") as base:
            prior = (
                class_latents(checkpoint, settings, size_px, base, out, on_picture) if settings.prior_weight else None
            )
            lessons = _Lessons(checkpoint, settings, pictures, size_px, told, prior)
            known = {"settings": settings.determining(), "base": base, "captions": told, "size_px": size_px,
                     "pictures": [hashlib.sha256(f"{p.size}".encode() + p.tobytes()).hexdigest() for p in pictures]}  # fmt: skip
            fingerprint = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
            unchecked = out / "character.unchecked.safetensors"
            with lora_layers(checkpoint.unet, rank=settings.rank, alpha=settings.alpha, seed=settings.seed):
                trained = fit(
                    "character", checkpoint.unet, lessons.batch, lessons.loss, settings, out=out,
                    examples=len(pictures), device=checkpoint.unet.device, fingerprint=fingerprint, on_step=on_step,
                    on_sheet=lessons.sheets(out / "sheets"),
                )  # fmt: skip
                save_lora(checkpoint.unet, unchecked, sdxl=checkpoint.family.size_conditioned, dtype=torch.float16)
        file = out / FILE_NAME
        os.replace(unchecked, file)  # only now is it known that the base stayed as it was
    return TrainedCharacter(
        file, sha256_of_file(file), file.stat().st_size, round(trained.seconds, 2), trained.losses,
        settings.phrase, base,
    )  # fmt: skip


def class_latents(
    checkpoint: Checkpoint, settings: CharacterTraining, size_px: int, base: dict[str, str], out: Path,
    on_picture: Callable[[int, int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Latents (n, c, h, w) of pictures that the base makes of the class, as they come out of the denoiser; cached.

    They go straight back in, so nothing is lost in decoding and encoding them again. Raises TrainingFailed where the
    base makes no numbers.
    """
    prompts = [settings.prior_prompts[i % len(settings.prior_prompts)] for i in range(settings.class_pictures)]
    made_by = json.dumps(
        [base, prompts, size_px, checkpoint.scheduler_config, asdict(checkpoint.family), settings.seed],
        sort_keys=True, default=str,
    )  # fmt: skip
    folder = settings.class_cache or out / "class_pictures"
    file = folder / f"{hashlib.sha256(made_by.encode()).hexdigest()[:32]}.safetensors"
    if not file.exists():
        engine = Engine(replace(checkpoint, adapter=None, further={}, controls={}))
        requests = [
            GenerationRequest(p, settings.seed + i, width_px=size_px, height_px=size_px) for i, p in enumerate(prompts)
        ]
        try:
            latents = []
            for start in range(0, len(requests), CLASS_BATCH):
                latents += [torch.from_numpy(g.latents) for g in engine.generate(requests[start : start + CLASS_BATCH])]
                if on_picture is not None:
                    on_picture(len(latents), len(requests))
        finally:
            engine.close()
        if not all(made.isfinite().all() for made in latents):
            raise TrainingFailed(
                f"{checkpoint.models[0].name} makes class pictures that are no numbers in {checkpoint.unet.dtype}",
                "open the base in bfloat16 or float32, or do without class pictures",
            )
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"latents": torch.stack(latents).float().contiguous()}, partial)
        os.replace(partial, file)
    return load_file(file)["latents"]


@dataclass(frozen=True)
class _Drawn:
    """One step's rows: the character's first, then as many of the class where there is a prior."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    sizes: Tensor
    text: TextStates
    prior: _Drawn | None = None


class _Lessons:
    """The loss of a step: the character's own and, weighted, the prior's."""

    def __init__(
        self, checkpoint: Checkpoint, settings: CharacterTraining, pictures: list[Image.Image], size_px: int,
        captions: list[str], prior: Tensor | None,
    ) -> None:  # fmt: skip
        self.checkpoint, self.settings, self.prior = checkpoint, settings, prior
        self.device, self.pictures, self.size_px = checkpoint.unet.device, pictures, size_px
        self.objective = Objective(checkpoint.scheduler_config, settings.snr_gamma, self.device)
        squares = [framed(p, size_px, settings.crop) for p in pictures]
        mirrored = [ImageOps.mirror(p) for p in squares] if settings.flips else []
        self.latents = latents_of(checkpoint, squares)
        self.mirrored = latents_of(checkpoint, mirrored) if mirrored else None
        self.sizes = torch.tensor([sizes_of(p.size, size_px, settings.crop) for p in pictures])
        self.text = text_states(checkpoint, captions)
        self.prior_text = text_states(checkpoint, [*settings.prior_prompts])

    def batch(self, step: int, index: np.ndarray) -> _Drawn:
        rng = random.Random(self.settings.seed * 1_000_003 + step)
        rows = torch.from_numpy(index)
        latents = self.latents[rows]
        if self.mirrored is not None:
            mirror = torch.rand(len(index)) < 0.5
            latents = torch.where(mirror.view(-1, 1, 1, 1), self.mirrored[rows], latents)
        prior = None
        if self.prior is not None:
            chosen = torch.tensor([rng.randrange(len(self.prior)) for _ in index])
            prompt = chosen % len(self.settings.prior_prompts)
            whole = torch.tensor(sizes_of((self.size_px, self.size_px), self.size_px)).repeat(len(index), 1)
            prior = self._drawn(self.prior[chosen], whole, self.prior_text[prompt.to(self.device)])
        return replace(self._drawn(latents, self.sizes[rows], self.text[rows.to(self.device)]), prior=prior)

    def _drawn(self, latents: Tensor, sizes: Tensor, text: TextStates) -> _Drawn:
        noise, timesteps = self.objective.draw(latents)
        return _Drawn(latents, noise, timesteps, sizes, text)

    def loss(self, drawn: _Drawn, rows: slice) -> Tensor:
        unet = self.checkpoint.unet
        halves = [drawn] if drawn.prior is None else [drawn, drawn.prior]  # in one forward pass
        x, noise, t, sizes = (
            torch.cat([getattr(half, part)[rows] for half in halves]).to(self.device)
            for part in ("latents", "noise", "timesteps", "sizes")
        )
        text = TextStates.joined([half.text[rows] for half in halves])
        noised = self.objective.noised(x, noise, t)
        latents = noised.latents.to(unet.dtype).contiguous(memory_format=torch.channels_last)
        with self.settings.autocast(self.device):
            guess = unet(latents, t, encoder_hidden_states=text.states, added_cond_kwargs=text.added(sizes)).sample
        own, *prior = (noised.weight * noised.row_losses(guess)).chunk(len(halves))
        return own.mean() + sum(self.settings.prior_weight * p.mean() for p in prior)

    def sheets(self, folder: Path) -> Callable[[int, Weights], None] | None:
        """What writes `folder/character-STEP.png`; None where no sheets are asked for."""
        if not self.settings.sheet_every:
            return None
        prompts = self.settings.sheet_prompts or (self.settings.instance_prompt, self.settings.prior_prompts[0])
        how = Drawing(self.settings.seed, self.size_px, self.settings.sheet_steps)

        def draw(step: int, weights: Weights) -> None:
            unet = self.checkpoint.unet
            live = {k: p.detach().clone() for k, p in unet.named_parameters() if k in weights}
            unet.load_state_dict(weights, strict=False)
            engine = Engine(replace(self.checkpoint, adapter=None, further={}, controls={}))
            try:
                sheet = prompt_sheet(engine, prompts, self.pictures, how)
            finally:
                engine.close()
                unet.load_state_dict(live, strict=False)
            folder.mkdir(parents=True, exist_ok=True)
            sheet.save(folder / f"character-{step:07d}.png", optimize=True)

        return draw
