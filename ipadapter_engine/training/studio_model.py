"""The recipe of the studio model, one command, stage after stage:

    python -m ipadapter_engine.training.studio_model --out runs/studio --start ipadapter_engine/models/studio

Without `--start` everything is trained from nothing. With it what that folder holds (an export, or a part of one) is taken
as it is, and its UNet is trained further, as where a GPU is lent for what a CPU began.

A stage that is finished is skipped, one that was killed goes on from its checkpoint. It runs in bf16 where the device has units for it.
`OUT/export` is what is to replace `ipadapter_engine/models/studio`; figures of every stage are printed and kept in
`OUT/figures.jsonl`, losses in `OUT/STAGE.jsonl`, pictures of held-out characters in `OUT/sheets`.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderTiny, ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.evaluation import sheets
from ipadapter_engine.evaluation.judge import Judge, accuracy, train_judge
from ipadapter_engine.families.studio import STUDIO
from ipadapter_engine.training.adapter_training import AdapterTraining, train_adapter
from ipadapter_engine.training.captions import full_caption, train_tokenizer
from ipadapter_engine.training.clip import new_clip, top1, train_words
from ipadapter_engine.training.control_training import new_control_net, train_pose_control
from ipadapter_engine.training.dataset import PictureSet, rendered
from ipadapter_engine.training.diffusion import (
    LatentSet,
    error_from_noise,
    new_scheduler,
    new_unet,
    text_states,
    train_unet,
)
from ipadapter_engine.training.drawing import render
from ipadapter_engine.training.export import (
    EXPORTED,
    export_base,
    export_control,
    export_judge,
    exported_unet,
    floats_of,
    has_sight,
    load_sight,
    load_words,
    own_weights,
)
from ipadapter_engine.training.first_stage import encode_all, new_first_stage, psnr, train_decoder, train_first_stage
from ipadapter_engine.training.mascots import (
    held_out_identities,
    random_staging,
    training_identities,
)
from ipadapter_engine.training.precision import quickest_precision
from ipadapter_engine.training.sight import train_sight
from ipadapter_engine.training.studio_data import ADAPTER_TRAINING, STYLE, StudioData

PICTURES, CHARACTERS = 120_000, 24_000
DENOISED = 80_000  # of them that the UNet and what is trained on it learn from
HEARD = 40_000  # of those that adapters learn from
STEPS = {
    "words": 700,
    "sight": 2300,
    "judge": 900,
    "vae": 2000,
    "unet": 11500,
    "decoder": 700,
    "adapter": 700,
    "plus": 450,
    "style": 500,
    "control": 700,
}
STAGES = ("words", "clip", "judge", "vae", "unet", "decoder", "adapter", "plus", "style", "control", "export")
POSE = "pose"
SHEET, WATCHED = 24, 96  # characters that a sheet shows; pictures that the UNet's figure is of
Model = TypeVar("Model", bound=nn.Module)


class Recipe:
    """Where the stages read and write; every stage's result is one file in `out`."""

    def __init__(
        self, out: Path, device: torch.device, start: Path | None = None, unet_steps: int = STEPS["unet"]
    ) -> None:
        self.out, self.device, self.start, self.unet_steps = out, device, start, unet_steps
        self.folder = out / "export"
        out.mkdir(parents=True, exist_ok=True)
        self._data: PictureSet | None = None

    @property
    def data(self) -> PictureSet:
        if self._data is None:
            who = training_identities()[:CHARACTERS]
            self._data = rendered(PICTURES, seed=1, identities=who, cache=self.out / "pictures.npy")
        return self._data

    def unseen(self, count: int = 1000) -> PictureSet:
        return rendered(count, seed=2, identities=held_out_identities())

    def note(self, stage: str, **figures: object) -> None:
        line = json.dumps({"stage": stage, **figures})
        print(line, flush=True)
        with (self.out / "figures.jsonl").open("a") as log:
            log.write(line + "\n")

    def tokenizer(self) -> CLIPTokenizer:
        folder = self.out / "tokenizer"
        if not (folder / "tokenizer_config.json").exists():
            if self.start is None:
                return train_tokenizer(folder)
            shutil.copytree(self.start / "tokenizer", folder, dirs_exist_ok=True)
        return CLIPTokenizer.from_pretrained(folder)

    def _stage(self, name: str, blank: Callable[[], Model], trained: Callable[[], nn.Module]) -> tuple[Model, bool]:
        """The stage's model, and whether it was trained now."""
        path, fresh = self.out / f"{name}.safetensors", False
        if not path.exists() and (begun := self._begun(name)) is not None:
            save_file(floats_of(begun), path)
        if not path.exists():
            state = trained().state_dict()
            save_file({k: v.cpu().float().contiguous() for k, v in state.items()}, path)
            fresh = True
        model = blank()
        model.load_state_dict(load_file(path))
        return model.eval(), fresh

    def _begun(self, name: str) -> Path | None:
        """What the training starts with of a stage that needs no more of it."""
        if self.start is None or name not in EXPORTED:
            return None
        file = self.start / EXPORTED[name]
        return file if file.exists() else None

    def words(self) -> CLIPModel:
        """The CLIP with its text half finished: what the denoiser reads."""
        tok = self.tokenizer()

        def trained() -> CLIPModel:
            torch.manual_seed(1)
            if self.start is not None:
                return load_words(new_clip(tok), self.start)
            return train_words(new_clip(tok), self.data, tok, self.out, steps=STEPS["words"], device=self.device)

        return self._stage("words", lambda: new_clip(tok), trained)[0]

    def clip(self) -> CLIPModel:
        """The whole CLIP, its image half matched to the words."""
        tok = self.tokenizer()

        def trained() -> CLIPModel:
            if self.start is not None and has_sight(self.start):
                return load_sight(self.words(), self.start)
            return train_sight(self.words(), self.data, tok, self.out, steps=STEPS["sight"], device=self.device)

        model, fresh = self._stage("clip", lambda: new_clip(tok), trained)
        if fresh:
            self.note("clip", top1_of_256_unseen=round(top1(model, tok, self.unseen()), 4))
        return model

    def judge(self) -> Judge:
        model, fresh = self._stage(
            "judge", Judge, lambda: train_judge(self.data, self.out, steps=STEPS["judge"], device=self.device)
        )
        if fresh:
            self.note("judge", **{k: round(v, 4) for k, v in accuracy(model, self.unseen()).items()})
        return model

    def vae(self) -> AutoencoderTiny:
        """What makes the latents that are learnt from."""
        model, fresh = self._stage(
            "vae",
            new_first_stage,
            lambda: train_first_stage(self.data, self.out, steps=STEPS["vae"], device=self.device),
        )
        if fresh:
            self.note("vae", psnr_db=round(psnr(model, self.unseen()), 2))
        return model

    def decoder(self) -> AutoencoderTiny:
        """The same latents, decoded better: the first stage that ships."""
        model, fresh = self._stage(
            "decoder",
            new_first_stage,
            lambda: train_decoder(self.vae(), self.data, self.out, steps=STEPS["decoder"], device=self.device),
        )
        if fresh:
            self.note("decoder", psnr_db=round(psnr(model, self.unseen()), 2))
        return model

    def latents(self) -> LatentSet:
        """Latents of the denoiser's pictures, made once."""
        path = self.out / "latents.safetensors"
        if not path.exists():
            save_file({"latents": encode_all(self.vae().to(self.device), self.data.first(DENOISED))}, path)
        return LatentSet(self.data.first(DENOISED), load_file(path)["latents"])

    def unet(self) -> UNet2DConditionModel:
        def trained() -> UNet2DConditionModel:
            start = None if self.start is None else exported_unet(self.start)
            return train_unet(
                self.latents(), self.words(), self.tokenizer(), self.out, steps=self.unet_steps, device=self.device,
                start=start, on_sheet=self._watch,
            )  # fmt: skip

        return self._stage("unet", new_unet, trained)[0]

    def _watch(self, step: int, unet: UNet2DConditionModel) -> None:
        """A sheet, and how far off the first guess is: from pure noise, where words alone tell what to draw."""
        latents, told = self._watched
        error = error_from_noise(unet, latents, told)
        self.note("unet", step=step, error_from_noise=round(error, 4), spread=round(latents.var().item(), 4))
        self._text_sheet(step, unet)

    @functools.cached_property
    def _watched(self) -> tuple[Tensor, Tensor]:
        """Latents of unseen pictures, and the text states of their captions."""
        unseen = self.unseen(WATCHED)
        told = [full_caption(w, s) for w, s in zip(unseen.identities, unseen.stagings, strict=True)]
        states = text_states(self.words(), self.tokenizer(), told, torch.device("cpu"))
        return encode_all(self.vae(), unseen).float(), states

    def _text_sheet(self, step: int, unet: UNet2DConditionModel) -> None:
        """Characters that are held out, as drawn and as made from their description, by diffusers' own pipeline."""
        words = self.words()
        text = CLIPTextModel(words.config.text_config)
        text.load_state_dict(own_weights(text, words, "text_model."))
        pipeline = StableDiffusionPipeline(
            self.vae(), text, self.tokenizer(), unet, new_scheduler(), None, None, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        rng, rows = random.Random(1), []
        for who in held_out_identities()[-SHEET:]:
            staging = random_staging(rng)
            rows.append((render(who, staging), full_caption(who, staging)))
        seeds = [torch.Generator().manual_seed(i) for i in range(SHEET)]
        made = pipeline(
            [p for _, p in rows], num_inference_steps=STUDIO.steps, guidance_scale=STUDIO.guidance, generator=seeds
        ).images
        folder = self.out / "sheets"
        folder.mkdir(exist_ok=True)
        sheets.pairs([(drawn, m, p) for (drawn, p), m in zip(rows, made, strict=True)]).save(
            folder / f"unet-{step:06d}.png"
        )

    def _base(self) -> Checkpoint:
        """The exported base, opened in full precision for a training, without what was trained on it."""
        if not (self.folder / "model_index.json").exists():
            export_base(
                self.folder, clip=self.clip(), tokenizer=self.tokenizer(), first_stage=self.decoder(), unet=self.unet()
            )  # fmt: skip
        opened = open_checkpoint(CheckpointPaths(self.folder), device=str(self.device))
        opened.adapter, opened.further, opened.controls = None, {}, {}
        return opened

    def adapter(self) -> None:
        """The identity adapter, 4 tokens."""
        self._adapter("adapter")

    def plus(self) -> None:
        """16 tokens through a resampler."""
        self._adapter("plus", variant="plus")

    def style(self) -> None:
        """4 tokens that hear the style and not the character."""
        self._adapter("style", name=STYLE)

    def _adapter(self, stage: str, **what: Any) -> None:
        precision = quickest_precision(self.device.type)
        settings = AdapterTraining(steps=STEPS[stage], precision=precision, **what, **ADAPTER_TRAINING)
        if (self.folder / settings.file_name).exists():
            return
        checkpoint, latents = self._base(), self.latents()
        pooled = settings.variant == "base"
        embeddings = self.out / f"{'pooled' if pooled else 'hidden'}.safetensors"
        data = StudioData(
            latents.first(HEARD), checkpoint, pooled=pooled, style=settings.called == STYLE, embeddings=embeddings
        )
        train_adapter(checkpoint, data, self.out, settings)
        (self.out / settings.file_name).rename(self.folder / settings.file_name)
        told = json.loads((self.out / f"{settings.called}.json").read_text())
        self.note(stage, seconds=told["seconds"], last_loss=told["last_loss"])

    def control(self) -> ControlNetModel:
        """The pose ControlNet."""
        base = self._base()
        model, _ = self._stage(
            "control",
            lambda: new_control_net(base.unet),
            lambda: train_pose_control(base, self.latents(), self.out, steps=STEPS["control"], device=self.device),
        )
        export_control(self.folder, model, POSE)
        return model

    def export(self) -> Path:
        """All of it, in the shipped folder."""
        for stage in (self.adapter, self.plus, self.style, self.control):
            stage()
        export_judge(self.folder, self.judge())
        return self.folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="an exported model to go on from")
    parser.add_argument("--unet-steps", type=int, default=STEPS["unet"], help="of the UNet (default %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    args = parser.parse_args()
    recipe = Recipe(args.out, torch.device("cuda" if torch.cuda.is_available() else "cpu"), args.start, args.unet_steps)
    for stage in args.stages:
        getattr(recipe, stage)()


if __name__ == "__main__":
    main()
