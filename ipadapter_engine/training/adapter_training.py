"""Training an IP-Adapter on a frozen base (Ye et al., 2023, arXiv:2308.06721, sec. 4.1; tutorial_train.py)."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ipadapter_engine.adapter import Adapter, adapter_from_state, new_base_adapter, new_plus_adapter
from ipadapter_engine.attention import Conditioning, ImagePrompt, Installed
from ipadapter_engine.checkpoints import Checkpoint, read_adapter_file
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.hashing import sha256_of_file
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.training.adapter_data import AdapterData, HasExamples, HasSizes
from ipadapter_engine.training.errors import TrainingFailed, TrainingRefused
from ipadapter_engine.training.frozen import frozen
from ipadapter_engine.training.loop import Trained, Weights, alone, fit
from ipadapter_engine.training.objective import Objective, TextStates, text_states
from ipadapter_engine.training.optimisation import Optimisation, attention_for_training
from ipadapter_engine.training.sheets import Drawing, adapter_sheet


@dataclass(frozen=True, kw_only=True)
class AdapterTraining(Optimisation):
    """variant: base reads pooled embeddings, plus the hidden states of the last layer but one through a resampler.

    name: what the engine calls the adapter, and by it the file: identity is `ip_adapter.safetensors`, any other
        `ip_adapter_NAME.safetensors`; by default identity for base, plus for plus. What an adapter is for (identity,
        style) lies in the references of its data alone.
    tokens: of the image, by default 4 and 16.
    drop_image, drop_text, drop_both: shares of the rows that are trained without, for guidance.
    snr_gamma, noisier: see Objective and its `draw`. save_dtype: of the file. sheet_rows, sheet_steps: of the validation sheets.
    """

    steps: int = 10_000
    variant: Literal["base", "plus"] = "base"
    name: str = ""
    tokens: int | None = None
    drop_image: float = 0.05
    drop_text: float = 0.05
    drop_both: float = 0.05
    snr_gamma: float | None = 5.0
    noisier: float = 1.0
    save_dtype: Literal["float16", "float32"] = "float16"
    sheet_rows: int = 6
    sheet_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("base", "plus"):
            raise TrainingRefused(f"there is no adapter variant {self.variant!r}", "choose base or plus")
        if self.save_dtype not in ("float16", "float32"):
            raise TrainingRefused(f"a file cannot be saved as {self.save_dtype!r}", "choose float16 or float32")
        if self.tokens is not None and self.tokens < 1:
            raise TrainingRefused(f"an adapter cannot have {self.tokens} tokens", "give 1 or more, or leave it out")
        if not self.called.replace("-", "").replace("_", "").isalnum():
            raise TrainingRefused(f"{self.name!r} cannot be an adapter's name", "use letters, digits, - and _")
        if not self.noisier >= 1:
            raise TrainingRefused(f"noisier is {self.noisier}, below 1", "give 1 for uniform timesteps, or more")
        drops = (self.drop_image, self.drop_text, self.drop_both)
        if min(drops) < 0 or sum(drops) > 1:
            raise TrainingRefused(f"the shares that are dropped are {drops}", "give shares of 0 or more, 1 in all")

    @property
    def called(self) -> str:
        return self.name or ("identity" if self.variant == "base" else "plus")

    @property
    def file_name(self) -> str:
        return "ip_adapter.safetensors" if self.called == "identity" else f"ip_adapter_{self.called}.safetensors"


def train_adapter(
    checkpoint: Checkpoint, data: AdapterData, out: Path, settings: AdapterTraining,
    *, on_step: Callable[[int, int], None] | None = None,
) -> Adapter:  # fmt: skip
    """Train an adapter for an open checkpoint and save it as `out/FILE_NAME` in the official layout.

    Beside it: `NAME.jsonl` (losses), `NAME.json` (settings, hashes, time), `sheets/`, and `NAME.ckpt`, from which a
    killed training goes on. Returns the adapter as it was loaded back from the file.
    Raises TrainingRefused (these do not go together, or it is being trained there), BaseChanged (nothing is saved
    then), TrainingFailed.
    """
    encoder = _encoder(checkpoint)
    device = checkpoint.unet.device
    settings.check_base(checkpoint.unet)
    with alone(out, settings.called):
        with frozen(checkpoint, out / f"{settings.called}.ckpt") as base:
            known = {"settings": _plain(settings), "base": base, "encoder": encoder.sha256, "examples": len(data),
                     "data": str(getattr(data, "sha256", ""))}  # fmt: skip
            fingerprint = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
            adapter = _new_adapter(checkpoint, encoder, settings).to(device)
            course = _Course(checkpoint, adapter, data, encoder, settings)
            try:
                trained = fit(
                    settings.called, adapter, course.batch, course.loss, settings, out=out, examples=len(data),
                    device=device, fingerprint=fingerprint, on_step=on_step, on_sheet=course.sheets(out / "sheets"),
                )  # fmt: skip
            finally:
                course.installed.eject()
        saved = save_adapter(adapter, checkpoint, out / settings.file_name, dtype=getattr(torch, settings.save_dtype))
        _note(out, settings, {**known, "file": settings.file_name}, trained)
    return saved


def save_adapter(adapter: Adapter, checkpoint: Checkpoint, path: Path, *, dtype: torch.dtype) -> Adapter:
    """Write the official layout, load it back and compare every tensor; returns what was loaded.

    Raises TrainingFailed for a file that lacks a part, holds no numbers, or is not what was trained.
    """
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in adapter.official_state().items()}
    broken = sorted(k for k, v in state.items() if not v.isfinite().all())
    if broken:
        raise TrainingFailed(
            f"{len(broken)} weights of the adapter are no numbers in {dtype}, {broken[0]} first",
            "save it as float32, or train with a lower learning rate",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial.safetensors")
    save_file(state, partial, metadata={"format": "pt"})
    found = read_adapter_file(partial)
    wrong = sorted(k for k in state.keys() | found.keys() if k not in found or not torch.equal(found[k], state.get(k, found[k][:0])))  # fmt: skip
    if wrong or sum(k.startswith("ip_adapter.") for k in found) != 2 * len(adapter.by_number()):
        raise TrainingFailed(f"{path.name} does not load back as it was trained: {wrong[:3]}", "check the disk")
    loaded = adapter_from_state(found, checkpoint.unet, file=path.name)
    os.replace(partial, path)
    return loaded.to(checkpoint.unet.device, checkpoint.unet.dtype).eval()


@dataclass(frozen=True)
class _Drawn:
    """All that one step reads and draws at random, for all its rows, on the CPU but for the text."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    sizes: Tensor
    references: Tensor
    text: TextStates


class _Course:
    """One training under way: the adapter installed in the base, and the loss of a step's rows."""

    def __init__(
        self, checkpoint: Checkpoint, adapter: Adapter, data: AdapterData, encoder: ImageEncoder,
        settings: AdapterTraining,
    ) -> None:  # fmt: skip
        self.checkpoint, self.adapter, self.data, self.settings = checkpoint, adapter, data, settings
        self.device = checkpoint.unet.device
        self.objective = Objective(checkpoint.scheduler_config, settings.snr_gamma, self.device)
        self.dropped = torch.zeros(encoder.dim) if adapter.pooled else torch.from_numpy(encoder.zero_hidden())
        self.installed = Installed(checkpoint.unet, adapter.by_number())

    def batch(self, step: int, index: np.ndarray) -> _Drawn:
        """Everything random comes from the step alone, so that parts of a batch and a resumed run see the same."""
        rng = random.Random(self.settings.seed * 1_000_003 + step)
        latents = self.data.latents(index).float()
        captions = list(self.data.captions(index, rng))
        references = self.data.references(index, rng).float()
        if references.shape[1:] != self.dropped.shape:
            raise TrainingRefused(
                f"the data's references have shape {tuple(references.shape[1:])}, the {self.adapter.variant} adapter "
                f"reads {tuple(self.dropped.shape)}",
                "embed them with this checkpoint's encoder, pooled for base and hidden states for plus",
            )
        noise, timesteps = self.objective.draw(latents, noisier=self.settings.noisier)
        kind = torch.rand(len(index))
        image, text, both = (self.settings.drop_image, self.settings.drop_text, self.settings.drop_both)
        no_image = (kind < image) | ((kind >= image + text) & (kind < image + text + both))
        no_text = ((kind >= image) & (kind < image + text + both)).tolist()
        references = torch.where(no_image.view(-1, *[1] * self.dropped.ndim), self.dropped, references)
        states = text_states(self.checkpoint, ["" if no else c for c, no in zip(captions, no_text, strict=True)])
        if isinstance(self.data, HasSizes):
            sizes = self.data.sizes(index)
        else:
            sides = [side * self.checkpoint.stride for side in latents.shape[2:]]
            sizes = torch.tensor([*sides, 0, 0, *sides]).repeat(len(index), 1)
        return _Drawn(latents, noise, timesteps, sizes, references, states)

    def loss(self, drawn: _Drawn, rows: slice) -> Tensor:
        unet = self.checkpoint.unet
        x, noise, t, references = (
            v[rows].to(self.device) for v in (drawn.latents, drawn.noise, drawn.timesteps, drawn.references)
        )
        text, noised = drawn.text[rows], self.objective.noised(x, noise, t)
        latents = noised.latents.to(unet.dtype).contiguous(memory_format=torch.channels_last)
        positions = x.shape[-2] * x.shape[-1]
        with self.settings.autocast(self.device), attention_for_training(self.device, positions):
            tokens = self.adapter.projection(references)
            blank = torch.zeros(tokens.shape[:2], device=self.device)
            prompt = ImagePrompt(tokens, blank, torch.ones(len(x), device=self.device))
            with self.installed.slot.holding(Conditioning([prompt], reuse=False)):
                guess = unet(
                    latents, t, encoder_hidden_states=text.states,
                    added_cond_kwargs=text.added(drawn.sizes[rows]),
                ).sample  # fmt: skip
        return noised.loss(guess)

    def sheets(self, folder: Path) -> Callable[[int, Weights], None] | None:
        """What writes `folder/NAME-STEP.png`; None where no sheets are asked for."""
        if not self.settings.sheet_every:
            return None
        if not isinstance(self.data, HasExamples):
            raise TrainingRefused(
                "validation sheets were asked for, but this data has no examples to show",
                "give the data a method examples(count), or set sheet_every to 0",
            )
        examples = self.data.examples(self.settings.sheet_rows)
        size_px = self.data.latents(np.array([0])).shape[-1] * self.checkpoint.stride
        how = Drawing(self.settings.seed, size_px, self.settings.sheet_steps)

        def draw(step: int, weights: Weights) -> None:
            shown = copy.deepcopy(self.adapter)
            shown.load_state_dict(weights)
            shown = shown.to(self.checkpoint.unet.dtype).eval()
            engine = Engine(replace(self.checkpoint, adapter=shown, further={}, controls={}))
            try:
                sheet = adapter_sheet(engine, examples, how)
            finally:
                engine.close()
            folder.mkdir(parents=True, exist_ok=True)
            sheet.save(folder / f"{self.settings.called}-{step:07d}.png", optimize=True)

        return draw


def _new_adapter(checkpoint: Checkpoint, encoder: ImageEncoder, settings: AdapterTraining) -> Adapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.variant == "base":
            return new_base_adapter(checkpoint.unet, encoder.dim, settings.tokens or 4)
        return new_plus_adapter(checkpoint.unet, encoder.hidden_dim, settings.tokens or 16)


def _encoder(checkpoint: Checkpoint) -> ImageEncoder:
    if checkpoint.encoder is None:
        raise TrainingRefused("this base has no image encoder, and an adapter needs one", "name it with --encoder")
    return checkpoint.encoder


def _plain(settings: AdapterTraining) -> dict[str, object]:
    """The settings that determine the weights, as JSON."""
    aside = ("checkpoint_every", "log_every", "sheet_every", "sheet_rows", "sheet_steps")
    return {k: v for k, v in json.loads(json.dumps(asdict(settings))).items() if k not in aside}


def _note(out: Path, settings: AdapterTraining, known: dict[str, object], trained: Trained) -> None:
    """What was trained, beside the file."""
    note = {**known, "sha256": sha256_of_file(out / settings.file_name), "seconds": round(trained.seconds, 1),
            "last_loss": trained.losses[-1][1] if trained.losses else None}  # fmt: skip
    (out / f"{settings.called}.json").write_text(json.dumps(note, indent=2) + "\n")
