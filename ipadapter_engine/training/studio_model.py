"""The recipe of the embedded studio model, one command, stage after stage:

    python -m ipadapter_engine.training.studio_model --out runs/studio

A stage that is finished is skipped, one that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from ipadapter_engine.adapter import Adapter, new_base_adapter
from ipadapter_engine.evaluation.judge import Judge, accuracy, train_judge
from ipadapter_engine.patches import PatchAutoencoder
from ipadapter_engine.training.captions import train_tokenizer
from ipadapter_engine.training.clip import new_clip, top1, train_clip
from ipadapter_engine.training.dataset import PictureSet, rendered
from ipadapter_engine.training.diffusion import LatentSet, embed_all, new_unet, train_adapter, train_unet
from ipadapter_engine.training.export import export
from ipadapter_engine.training.first_stage import encode_all, fit_first_stage, new_first_stage, psnr
from ipadapter_engine.training.mascots import held_out_identities

PICTURES = 80_000
STEPS = {"clip": 1500, "unet": 2800, "adapter": 1300, "judge": 700}


class Recipe:
    """Where the stages read and write; every stage's result is one file in `out`."""

    def __init__(self, out: Path, device: torch.device) -> None:
        self.out, self.device = out, device
        out.mkdir(parents=True, exist_ok=True)
        self._data: PictureSet | None = None

    @property
    def data(self) -> PictureSet:
        if self._data is None:
            self._data = rendered(PICTURES, seed=1, cache=self.out / "pictures.npy")
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
            return train_tokenizer(folder)
        return CLIPTokenizer.from_pretrained(folder)

    def _stage(
        self, name: str, blank: Callable[[], torch.nn.Module], trained: Callable[[], torch.nn.Module]
    ) -> tuple[torch.nn.Module, bool]:
        path = self.out / f"{name}.safetensors"
        if path.exists():
            model = blank()
            model.load_state_dict(load_file(path))
            return model.eval(), False
        model = trained().cpu().float()
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
        return model.eval(), True

    def clip(self) -> CLIPModel:
        tok = self.tokenizer()
        model, fresh = self._stage(
            "clip",
            lambda: new_clip(tok),
            lambda: train_clip(self.data, tok, self.out, steps=STEPS["clip"], device=self.device),
        )
        assert isinstance(model, CLIPModel)
        if fresh:
            self.note("clip", top1_of_256_unseen=round(top1(model, tok, self.unseen()), 4))
        return model

    def judge(self) -> Judge:
        model, fresh = self._stage(
            "judge", Judge, lambda: train_judge(self.data, self.out, steps=STEPS["judge"], device=self.device)
        )
        assert isinstance(model, Judge)
        if fresh:
            self.note("judge", **{k: round(v, 4) for k, v in accuracy(model, self.unseen()).items()})
        return model

    def first_stage(self) -> PatchAutoencoder:
        model, fresh = self._stage("vae", new_first_stage, lambda: fit_first_stage(self.data))
        assert isinstance(model, PatchAutoencoder)
        if fresh:
            self.note("vae", psnr_db=round(psnr(model, self.unseen()), 2))
        return model

    def latents(self) -> LatentSet:
        """Latents and embeddings of all training pictures, made once."""
        path = self.out / "latents.safetensors"
        if not path.exists():
            latents = encode_all(self.first_stage(), self.data)
            embedded = embed_all(self.clip().to(self.device), self.data, self.device)
            save_file({"latents": latents, "embeddings": embedded}, path)
        held = load_file(path)
        return LatentSet(self.data, held["latents"], held["embeddings"])

    def unet(self) -> UNet2DConditionModel:
        def trained() -> torch.nn.Module:
            return train_unet(
                self.latents(), self.clip(), self.tokenizer(), self.out, steps=STEPS["unet"], device=self.device
            )

        model, _ = self._stage("unet", new_unet, trained)
        assert isinstance(model, UNet2DConditionModel)
        return model

    def adapter(self) -> Adapter:
        def blank() -> torch.nn.Module:
            return new_base_adapter(new_unet(), self.clip().config.projection_dim)

        def trained() -> torch.nn.Module:
            return train_adapter(
                self.latents(), self.unet(), self.clip(), self.tokenizer(), self.out,
                steps=STEPS["adapter"], device=self.device,
            )  # fmt: skip

        model, _ = self._stage("adapter", blank, trained)
        assert isinstance(model, Adapter)
        return model

    def export(self) -> Path:
        """The shipped folder: what `ipadapter_engine/models/studio` holds."""
        folder = self.out / "export"
        export(
            folder, clip=self.clip(), tokenizer=self.tokenizer(), first_stage=self.first_stage(), unet=self.unet(),
            adapter=self.adapter(),
        )  # fmt: skip
        save_file(
            {k: v.half().contiguous() for k, v in self.judge().state_dict().items()}, folder / "judge.safetensors"
        )
        return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", default=["clip", "vae", "unet", "adapter", "judge", "export"])
    args = parser.parse_args()
    recipe = Recipe(args.out, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    stages: dict[str, Callable[[], object]] = {
        "clip": recipe.clip,
        "vae": recipe.first_stage,
        "unet": recipe.unet,
        "adapter": recipe.adapter,
        "judge": recipe.judge,
        "export": recipe.export,
    }
    for stage in args.stages:
        stages[stage]()


if __name__ == "__main__":
    main()
