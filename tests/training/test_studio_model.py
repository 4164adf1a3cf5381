"""The recipe's stages train, resume, leave the base as it is, and go on from what was exported."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.training import control_training, diffusion, first_stage, sight, studio_data
from ipadapter_engine.training.adapter_training import AdapterTraining, train_adapter
from ipadapter_engine.training.captions import (
    DEFAULT_STYLE,
    train_tokenizer,
)
from ipadapter_engine.training.clip import new_clip, train_words
from ipadapter_engine.training.control_training import train_pose_control
from ipadapter_engine.training.dataset import PictureSet, rendered
from ipadapter_engine.training.diffusion import (
    LatentSet,
    caption_for_base,
    error_from_noise,
    new_unet,
    train_unet,
)
from ipadapter_engine.training.drawing import PARTS, parts_at, render
from ipadapter_engine.training.export import export_base, exported_unet
from ipadapter_engine.training.first_stage import encode_all, new_first_stage, train_decoder, train_first_stage
from ipadapter_engine.training.frozen import base_sha256s
from ipadapter_engine.training.loop import train
from ipadapter_engine.training.mascots import held_out_identities
from ipadapter_engine.training.sight import train_sight
from ipadapter_engine.training.studio_data import StudioData, studio_adapter_data
from ipadapter_engine.training.studio_model import Recipe
from tests.training.untrained import write_untrained

CPU = torch.device("cpu")


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))

    def run(out: Path, *stops: int) -> torch.Tensor:
        for steps in (*stops, 30):
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 1)

            def loss_of(
                step: int, index: np.ndarray, model: torch.nn.Module = model, stop: int = steps
            ) -> torch.Tensor:
                if stop < 30 and step == stop:
                    raise KeyboardInterrupt
                return (model(data[index]) - data[index].sum(1, keepdim=True)).square().mean()

            try:
                train("line", model, loss_of, out=out, steps=30, batch_size=8, examples=64, lr=0.05, ema_decay=0.9)
            except KeyboardInterrupt:
                continue
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    monkeypatch.setattr("ipadapter_engine.training.loop.CHECKPOINT_EVERY_S", -1.0)
    assert torch.equal(run(tmp_path / "whole"), run(tmp_path / "stopped", 7, 19))


@pytest.fixture(scope="module")
def pictures() -> PictureSet:
    return rendered(60, seed=3, identities=held_out_identities()[:12])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step does to a model shows in a few rows as in those of the recipe."""
    for module, name in (
        (sight, "BATCH"),
        (diffusion, "BATCH"),
        (control_training, "BATCH"),
        (first_stage, "_CROPS"),
        (first_stage, "_WHOLE"),
    ):
        monkeypatch.setattr(module, name, 4)


@pytest.fixture(scope="module")
def untrained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once; every test opens it anew, as trainings change what is open."""
    return write_untrained(tmp_path_factory.mktemp("untrained"))


@pytest.fixture
def untrained(untrained_base: Path) -> Checkpoint:
    return open_checkpoint(CheckpointPaths(untrained_base))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than the few steps of a test."""
    monkeypatch.setattr(torch, "compile", lambda model: model)


@pytest.fixture(scope="module")
def encoded(untrained_base: Path, pictures: PictureSet) -> torch.Tensor:
    """The pictures as the untrained base encodes them."""
    return encode_all(open_checkpoint(CheckpointPaths(untrained_base)).vae, pictures)


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {k.split(".")[0] for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.usefixtures("uncompiled")
def test_words_are_learnt_first_and_sight_then_leaves_them_as_they_are(pictures: PictureSet, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tmp_path / "tokenizer")
    clip = new_clip(tokenizer)
    start = state_of(clip)
    train_words(clip, pictures, tokenizer, tmp_path, steps=2, device=CPU)
    assert changed(start, clip) == {"text_model", "text_projection"}
    worded = state_of(clip)
    train_sight(clip, pictures, tokenizer, tmp_path, steps=2, device=CPU)
    assert changed(worded, clip) == {"vision_model", "visual_projection"}


@pytest.mark.usefixtures("uncompiled")
def test_the_denoiser_trains_from_nothing_or_from_what_was_exported(pictures: PictureSet, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tmp_path / "tokenizer")
    clip, shown = new_clip(tokenizer), []
    vae = train_first_stage(pictures, tmp_path, steps=2, device=CPU)
    latents = LatentSet(pictures, encode_all(vae, pictures))

    def trained(name: str, start: dict[str, torch.Tensor] | None) -> torch.nn.Module:
        return train_unet(
            latents, clip, tokenizer, tmp_path / name, steps=1, device=CPU, start=start,
            on_sheet=lambda step, unet: shown.append((step, unet.training)),
        )  # fmt: skip

    first = trained("new", None)
    assert shown == [(1, False)]
    given = {k: torch.full_like(v, 0.01) for k, v in first.state_dict().items()}
    assert (trained("given", given).state_dict()["conv_in.weight"] - 0.01).abs().max() < 0.01


def test_the_decoder_is_taught_further_and_the_latents_stay_as_they_are(pictures: PictureSet, tmp_path: Path) -> None:
    vae = train_first_stage(pictures, tmp_path, steps=2, device=CPU)
    before, latents = state_of(vae), encode_all(vae, pictures)
    train_decoder(vae, pictures, tmp_path, steps=2, device=CPU)
    assert changed(before, vae) == {"decoder"}
    assert torch.equal(encode_all(vae, pictures), latents)


def test_the_first_guess_is_off_by_what_words_do_not_tell() -> None:
    """A denoiser that says nothing is off by the latents' own square."""
    unet = new_unet()
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.constant_(unet.conv_out.bias, 0.5)
    latents, text = torch.full((3, 16, 16, 16), 2.0), torch.zeros(3, 40, 192)
    assert error_from_noise(unet.eval(), latents, text) == pytest.approx(1.5**2)


def test_the_parts_that_are_taught_lie_where_they_are_drawn(pictures: PictureSet) -> None:
    """Where a part is said to be, the picture is another than with another value of it; elsewhere mostly the same."""
    who, staging = pictures.identities[0], replace(pictures.stagings[0], view="front", expression="happy", style="flat")
    other = replace(staging, expression="surprised")
    place = PARTS.index(("expression", "happy")), PARTS.index(("expression", "surprised"))
    cells = [parts_at(who, s, grid=8, seed=4)[:, k] for s, k in zip((staging, other), place, strict=True)]
    pixels = [np.asarray(render(who, s, size_px=96, seed=4)).astype(int) for s in (staging, other)]
    differs = np.abs(pixels[0] - pixels[1]).sum(-1).reshape(8, 12, 8, 12).swapaxes(1, 2).reshape(64, -1).sum(1) > 0
    assert cells[0].any()
    assert differs[cells[0] | cells[1]].all()
    assert differs.sum() <= (cells[0] | cells[1]).sum() + 6


@pytest.mark.parametrize(("variant", "name"), [("base", ""), ("plus", ""), ("base", "style")])
def test_adapters_train_on_the_studio_s_pictures_and_the_base_stays_as_it_was(
    untrained: Checkpoint, pictures: PictureSet, encoded: torch.Tensor, tmp_path: Path, variant: str, name: str
) -> None:
    before = base_sha256s(untrained)
    latents = LatentSet(pictures, encoded)
    data = StudioData(latents, untrained, pooled=variant == "base", style=name == "style")
    settings = AdapterTraining(steps=2, batch_size=4, variant=variant, name=name, precision="bf16")  # type: ignore[arg-type]
    adapter = train_adapter(untrained, data, tmp_path / "out", settings)
    assert adapter.variant == variant
    assert (tmp_path / "out" / settings.file_name).exists()
    assert base_sha256s(untrained) == before


def test_an_identity_s_reference_is_another_picture_of_it_and_a_style_s_one_of_anybody(
    untrained: Checkpoint, pictures: PictureSet
) -> None:
    latents = LatentSet(pictures, torch.zeros(len(pictures), 16, 16, 16))
    who, style = (StudioData(latents, untrained, pooled=True, style=s) for s in (False, True))
    rng, strangers = random.Random(2), 0
    for i in range(len(pictures)):
        j = who._reference_of(i, rng)
        assert pictures.identities[j] == pictures.identities[i]
        assert j != i
        j = style._reference_of(i, rng)
        assert pictures.stagings[j].style == pictures.stagings[i].style
        strangers += pictures.identities[j] != pictures.identities[i]
    assert strangers > len(pictures) // 2
    told = style.captions(np.arange(len(pictures)), rng)
    assert not any("style" in caption for caption in told)
    assert not any(pictures.identities[i].colour in c.split() for i, c in enumerate(who.captions(np.arange(60), rng)))


def test_the_studio_s_pictures_are_drawn_and_encoded_once(
    untrained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio_data, "PICTURES", 30)
    made = studio_adapter_data(untrained, AdapterTraining(), cache=tmp_path / "cache")
    written = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()}
    again = studio_adapter_data(untrained, AdapterTraining(), cache=tmp_path / "cache")
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()} == written
    assert made.sha256 == again.sha256
    assert torch.equal(made.latents(np.arange(30)), again.latents(np.arange(30)))


def test_an_exported_model_is_what_a_training_goes_on_from(tmp_path: Path) -> None:
    """CLIP, VAE and UNet come back out of the half precision of the export, tensor by tensor."""
    torch.manual_seed(3)
    tokenizer = train_tokenizer(tmp_path / "tokenizer")
    clip, vae, unet = new_clip(tokenizer), new_first_stage(), new_unet()
    export_base(tmp_path / "base", clip=clip, tokenizer=tokenizer, first_stage=vae, unet=unet)
    recipe = Recipe(tmp_path / "out", CPU, tmp_path / "base")
    for mine, theirs in ((recipe.clip().state_dict(), clip.state_dict()), (recipe.vae().state_dict(), vae.state_dict()),
                         (exported_unet(tmp_path / "base"), unet.state_dict())):  # fmt: skip
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k].half().float()) for k in mine if k != "logit_scale")
    assert recipe.tokenizer().get_vocab() == tokenizer.get_vocab()


def test_a_control_net_trains_and_the_base_stays_as_it_was(
    untrained: Checkpoint, pictures: PictureSet, encoded: torch.Tensor, tmp_path: Path
) -> None:
    before = base_sha256s(untrained)
    latents = LatentSet(pictures, encoded)
    net = train_pose_control(untrained, latents, tmp_path, steps=2, device=CPU)
    assert base_sha256s(untrained) == before
    assert any(p.abs().sum() > 0 for p in net.controlnet_mid_block.parameters())


def test_captions_of_the_base_leave_parts_out_and_name_every_unusual_style(pictures: PictureSet) -> None:
    rng = random.Random(4)
    both = [(i, caption_for_base(pictures, i, rng)) for i in list(range(len(pictures))) * 20]
    told = [(i, c.attended) for i, c in both]
    assert 0.03 < sum(c == "" for _, c in told) / len(told) < 0.12
    unusual = [(i, c) for i, c in told if c and pictures.stagings[i].style != DEFAULT_STYLE]
    assert all(f"{pictures.stagings[i].style} style" in c for i, c in unusual)
    assert {len(c.split(",")) for _, c in told} >= {8, 9, 10}
    silent = sum(c.pooled != c.attended for _, c in both) / len(both)
    assert 0.3 < silent < 0.5
    assert all(c.pooled.startswith("a mascot") for _, c in both if c.pooled != c.attended)
