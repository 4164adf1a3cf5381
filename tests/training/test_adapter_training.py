"""Adapters are trained on a base that stays as it was, survive a kill, and their files hold what was trained."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from ipadapter_engine.adapter import new_base_adapter, new_plus_adapter
from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.training import loop
from ipadapter_engine.training.adapter_data import FolderData
from ipadapter_engine.training.adapter_training import AdapterTraining, train_adapter
from ipadapter_engine.training.errors import BaseChanged, FolderInvalid, TrainingFailed, TrainingRefused
from ipadapter_engine.training.folder import read_folder
from ipadapter_engine.training.frozen import base_sha256s
from ipadapter_engine.training.latents import framed, latents_of, sizes_of, upright
from ipadapter_engine.training.lora import lora_layers
from ipadapter_engine.training.objective import Objective
from ipadapter_engine.training.optimisation import Optimisation
from tests.forking import Forked
from tests.ipadapter_engine import tiny_checkpoints as tiny

SIZE_PX = 32


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckpointPaths]:
    root = tmp_path_factory.mktemp("bases")
    encoder = tiny.write_encoder(root / "clip")
    folders = {
        "sd15": tiny.write_sd15(root / "sd15"),
        "sdxl": tiny.write_sdxl(root / "sdxl"),
        "v": tiny.write_sd15(root / "v", prediction_type="v_prediction"),
        "sample": tiny.write_sd15(root / "sample", prediction_type="sample"),
    }
    return {name: CheckpointPaths(folder, encoder=encoder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two characters with two pictures each, and one alone."""
    return write_pictures(tmp_path_factory.mktemp("data"))


def write_pictures(folder: Path) -> Path:
    lines = []
    for i, (name, identity) in enumerate([("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b"), ("c", None)]):
        colours = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((48, 40), Image.Resampling.NEAREST).save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "text": f"a red fox {i}", "identity": identity}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def open_data(base: Checkpoint, folder: Path, variant: str = "base") -> FolderData:
    return FolderData.open(folder, base, variant=variant, size_px=SIZE_PX)


def laid_out(base: Checkpoint) -> bool:
    """Whether the UNet's convolutions have their channels last."""
    return bool(base.unet.conv_in.weight.stride(1) == 1)


def small(**changes: Any) -> AdapterTraining:
    return replace(AdapterTraining(steps=4, batch_size=4, log_every=1, save_dtype="float32"), **changes)


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("variant", ["base", "plus"])
@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_what_is_saved_is_what_was_trained_and_the_base_is_as_before(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path, layout: str, variant: str
) -> None:
    base = open_checkpoint(bases[layout])
    before = base_sha256s(base)
    processors = dict(base.unet.attn_processors)
    strides = [p.stride() for p in base.unet.parameters()]
    adapter = train_adapter(base, open_data(base, folder, variant), tmp_path, small(variant=variant))
    assert base_sha256s(base) == before
    assert dict(base.unet.attn_processors) == processors
    assert [p.stride() for p in base.unet.parameters()] == strides
    path = tmp_path / ("ip_adapter.safetensors" if variant == "base" else "ip_adapter_plus.safetensors")
    saved, trained = load_file(path), adapter.official_state()
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[k], trained[k]) for k in saved)
    assert sum(k.startswith("ip_adapter.") for k in saved) == 2 * len(adapter.by_number())
    untrained = (
        new_base_adapter(base.unet, tiny.EMBED) if variant == "base" else new_plus_adapter(base.unet, tiny.HIDDEN)
    )
    started = untrained.official_state()
    moved = [k for k in saved if k.startswith("ip_adapter.") and not torch.equal(saved[k], started[k])]
    assert len(moved) == 2 * len(adapter.by_number())  # copies of to_k and to_v, and then every one of them trained
    reopened = Engine.open(replace(bases[layout], adapter=path))
    reference = reopened.look_at(Image.open(folder / "a1.png"))
    (picture,) = reopened.generate([GenerationRequest("a fox", 1, (reference,), width_px=32, height_px=32, steps=2)])
    assert picture.finite


def test_diffusers_loads_the_trained_plus_file_and_makes_the_same_picture(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    train_adapter(base, open_data(base, folder, "plus"), tmp_path, small(variant="plus", lr=1e-2))
    assert bases["sd15"].encoder is not None
    pipe = StableDiffusionPipeline.from_pretrained(
        bases["sd15"].base, safety_checker=None, local_files_only=True,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(bases["sd15"].encoder, local_files_only=True),
    )  # fmt: skip
    pipe.load_ip_adapter(tmp_path, subfolder="", weight_name="ip_adapter_plus.safetensors", image_encoder_folder=None)
    projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    engine = Engine.open(replace(bases["sd15"], adapter=tmp_path / "ip_adapter_plus.safetensors"))
    assert engine.checkpoint.adapter is not None
    hidden = torch.from_numpy(engine.look_at(Image.open(folder / "a1.png")).embedding)[None]
    with torch.no_grad():
        torch.testing.assert_close(projection(hidden), engine.checkpoint.adapter.projection(hidden))


def test_a_plus_adapter_has_sixteen_tokens_and_the_sizes_of_the_authors(bases: dict[str, CheckpointPaths]) -> None:
    unet = open_checkpoint(bases["sd15"]).unet
    adapter = new_plus_adapter(unet, tiny.HIDDEN)
    assert adapter.projection(torch.zeros(3, 5, tiny.HIDDEN)).shape == (3, 16, tiny.WIDTH)
    assert len({k.split(".")[2] for k in adapter.official_state() if k.startswith("image_proj.layers.")}) == 4


def test_a_base_that_changes_meanwhile_is_seen_and_nothing_is_saved(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])

    class Meddling(FolderData):
        def captions(self, index: np.ndarray, rng: random.Random) -> list[str]:
            with torch.no_grad():
                next(base.unet.parameters()).mul_(1.0001)
            return super().captions(index, rng)

    data = Meddling.open(folder, base, size_px=SIZE_PX)
    with pytest.raises(BaseChanged, match="unet changed"):
        train_adapter(base, data, tmp_path, small())
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "identity.ckpt").exists()  # else the next run would save what was learnt on another base


def test_a_base_under_the_lora_of_another_model_is_refused(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    with lora_layers(base.unet, rank=4), pytest.raises(TrainingRefused, match="LoRA of another model"):
        train_adapter(base, open_data(base, folder), tmp_path, small())


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_parts_that_are_accumulated_equal_one_large_batch(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path, layout: str
) -> None:
    base = open_checkpoint(bases[layout])
    data = open_data(base, folder)
    whole = train_adapter(base, data, tmp_path / "whole", small(batch_size=6, drop_image=0.3, drop_text=0.3))
    parts = train_adapter(
        base, data, tmp_path / "parts", small(batch_size=2, accumulate=3, drop_image=0.3, drop_text=0.3)
    )
    one, two = (loop.read_losses(tmp_path / name, "identity") for name in ("whole", "parts"))
    assert [v for _, v in one] == pytest.approx([v for _, v in two], rel=1e-4)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5, msg=name)  # a fifth of one step of AdamW at 1e-4


def test_it_learns(bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path) -> None:
    """The same noise and pictures at every step count: the trained adapter's loss on them is below the untrained's."""
    base = open_checkpoint(bases["sd15"])
    train_adapter(base, open_data(base, folder), tmp_path, small(steps=60, lr=3e-3, batch_size=8))
    losses = [v for _, v in loop.read_losses(tmp_path, "identity")]
    assert np.mean(losses[-15:]) < np.mean(losses[:15])


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_trains_on_a_cpu(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path, precision: Any
) -> None:
    base = open_checkpoint(bases["sd15"])
    adapter = train_adapter(base, open_data(base, folder), tmp_path, small(precision=precision))
    assert all(v.isfinite().all() for v in adapter.official_state().values())


def test_fp16_needs_cuda_and_says_so(bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path) -> None:
    base = open_checkpoint(bases["sd15"])
    with pytest.raises(TrainingRefused, match="CUDA only"):
        train_adapter(base, open_data(base, folder), tmp_path, small(precision="fp16"))


def test_an_average_of_the_weights_is_what_is_saved(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    data = open_data(base, folder)
    last = train_adapter(base, data, tmp_path / "last", small(lr=1e-2)).official_state()
    kept = train_adapter(base, data, tmp_path / "mean", small(lr=1e-2, ema_decay=0.9)).official_state()
    started = new_base_adapter(base.unet, tiny.EMBED).official_state()
    key = "ip_adapter.1.to_k_ip.weight"
    assert 0 < (kept[key] - started[key]).norm() < (last[key] - started[key]).norm()


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_the_unet_of_sdxl_is_told_how_each_picture_was_scaled_and_cropped(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path, layout: str
) -> None:
    base, told = open_checkpoint(bases[layout]), []
    hook = base.unet.register_forward_pre_hook(
        lambda unet, args, kwargs: told.append(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    train_adapter(base, open_data(base, folder), tmp_path, small(steps=1))
    hook.remove()
    rows = [None if t is None else {tuple(row) for row in t["time_ids"].tolist()} for t in told]
    assert rows == [{(40, 48, 0, 3, SIZE_PX, SIZE_PX)} if layout == "sdxl" else None]  # pictures of 48 x 40 px


def test_the_sizes_of_a_picture_are_those_after_it_was_turned(
    bases: dict[str, CheckpointPaths], tmp_path: Path
) -> None:
    assert sizes_of((60, 30), 60) == (30, 60, 0, 30, 60, 60)
    assert sizes_of((60, 30), 60, "pad") == (30, 60, 0, 0, 60, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "turned.txt").write_text("a red fox\n")
    data = open_data(open_checkpoint(bases["sd15"]), tmp_path)
    assert data.sizes(np.array([0, 0])).tolist() == [[64, 32, 16, 0, 32, 32]] * 2


def test_sheets_show_reference_scale_zero_and_scale_one(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    data = open_data(base, folder)
    settings = small(sheet_every=2, sheet_rows=2, sheet_steps=2, lr=1e-2)
    layouts: list[bool] = []
    with_sheets = train_adapter(base, data, tmp_path / "a", settings, on_step=lambda *_: layouts.append(laid_out(base)))
    assert layouts == [True] * settings.steps  # an engine that draws a sheet leaves the layout as it found it
    assert not laid_out(base)
    sheets = sorted((tmp_path / "a" / "sheets").glob("*.png"))
    assert [s.name for s in sheets] == ["identity-0000002.png", "identity-0000004.png"]
    first, last = (np.asarray(Image.open(s)) for s in sheets)
    cell, gap = 160, 6
    rows = slice(22, 22 + cell)
    columns = [slice(gap + k * (cell + gap), gap + k * (cell + gap) + cell) for k in range(3)]
    assert np.array_equal(first[rows, columns[0]], last[rows, columns[0]])  # the reference
    assert np.array_equal(first[rows, columns[1]], last[rows, columns[1]])  # the base alone, from the same seed
    assert not np.array_equal(first[rows, columns[2]], last[rows, columns[2]])  # what is trained
    without = train_adapter(base, data, tmp_path / "b", replace(settings, sheet_every=0))
    for a, b in zip(with_sheets.state_dict().values(), without.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------------- stopped and resumed

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.training.adapter_data import FolderData
from ipadapter_engine.training.adapter_training import AdapterTraining, train_adapter
base, encoder, folder, out, precision, steps = sys.argv[1:]
opened = open_checkpoint(CheckpointPaths(Path(base), encoder=Path(encoder)))
settings = AdapterTraining(steps=int(steps), batch_size=2, accumulate=2, checkpoint_every=4, log_every=1, ema_decay=0.9,
                           precision=precision)
def kill(done, of):
    if done == 10:
        os.kill(os.getpid(), signal.SIGKILL)
train_adapter(opened, FolderData.open(Path(folder), opened, size_px=32), Path(out), settings, on_step=kill)
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_started_again_it_ends_bit_for_bit_the_same(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path, precision: Any
) -> None:
    steps, whole, killed = 16, tmp_path / "whole", tmp_path / "killed"
    base = open_checkpoint(bases["sd15"])
    data = open_data(base, folder)
    settings = AdapterTraining(
        steps=steps, batch_size=2, accumulate=2, checkpoint_every=4, log_every=1, ema_decay=0.9, precision=precision
    )
    train_adapter(base, data, whole, settings)
    arguments = [str(bases["sd15"].base), str(bases["sd15"].encoder), str(folder), str(killed), precision, str(steps)]
    process = Forked(arguments, program=KILLED)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "ip_adapter.safetensors").exists()
    assert torch.load(killed / "identity.ckpt", weights_only=True)["step"] == 8
    assert (killed / "identity.jsonl").read_text().count("\n") == 10  # two lines more than the checkpoint knows
    train_adapter(base, data, killed, settings)
    assert (whole / "ip_adapter.safetensors").read_bytes() == (killed / "ip_adapter.safetensors").read_bytes()
    assert loop.read_losses(whole, "identity") == loop.read_losses(killed, "identity")
    assert [step for step, _ in loop.read_losses(killed, "identity")] == list(range(steps))


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    data = open_data(base, folder)
    train_adapter(base, data, tmp_path, small())
    train_adapter(base, data, tmp_path, small())
    with pytest.raises(TrainingRefused, match="other settings"):
        train_adapter(base, data, tmp_path, small(lr=1e-3))


def test_a_folder_is_trained_in_by_one_at_a_time(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    data = open_data(base, folder)
    with loop.alone(tmp_path, "identity"), pytest.raises(TrainingRefused, match="being trained"):
        train_adapter(base, data, tmp_path, small())
    train_adapter(base, data, tmp_path, small(steps=1))


def test_a_damaged_checkpoint_is_refused_with_a_next_step(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    (tmp_path / "identity.ckpt").write_bytes(b"torn")
    with pytest.raises(TrainingRefused) as caught:
        train_adapter(base, open_data(base, folder), tmp_path, small())
    assert "remove it" in caught.value.next_step


def test_what_is_no_number_is_never_saved(bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path) -> None:
    base = open_checkpoint(bases["sd15"])

    class Breaking(FolderData):
        def latents(self, index: np.ndarray) -> torch.Tensor:
            calls.append(0)
            return super().latents(index) * (float("nan") if len(calls) == 6 else 1.0)

    calls: list[int] = []
    data = Breaking.open(folder, base, size_px=SIZE_PX)
    settings = small(steps=12, log_every=5, checkpoint_every=2)
    with pytest.raises(TrainingFailed, match="nan at step 5"):  # saved after it, logged on it
        train_adapter(base, data, tmp_path, settings)
    kept = torch.load(tmp_path / "identity.ckpt", weights_only=True)
    assert kept["step"] == 4
    assert all(v.isfinite().all() for v in kept["weights"].values())
    train_adapter(base, data, tmp_path, settings)  # it passed: the training goes on


# ---------------------------------------------------------------------------- what is learnt


@pytest.mark.parametrize("layout", ["sd15", "v", "sample"])
def test_the_target_is_what_the_scheduler_of_the_base_predicts(bases: dict[str, CheckpointPaths], layout: str) -> None:
    """A guess equal to the target gives, by the definition of each prediction type, the clean latents back."""
    objective = Objective(open_checkpoint(bases[layout]).scheduler_config, 5.0, torch.device("cpu"))
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise, t = objective.draw(x)
    noised = objective.noised(x, noise, t)
    a = objective.alphas[t].view(-1, 1, 1, 1)
    clean = {
        "sd15": lambda: (noised.latents - (1 - a).sqrt() * noised.target) / a.sqrt(),
        "v": lambda: a.sqrt() * noised.latents - (1 - a).sqrt() * noised.target,
        "sample": lambda: noised.target,
    }[layout]()
    torch.testing.assert_close(clean, x, atol=1e-3, rtol=1e-3)
    assert noised.loss(noised.target) == 0
    assert (noised.weight > 0).all()
    assert noised.weight.max() <= 5.0


def test_noisier_draws_late_timesteps_as_often_as_they_are_late() -> None:
    objective = Objective({"num_train_timesteps": 1000, "prediction_type": "sample"}, 5.0, torch.device("cpu"))
    torch.manual_seed(0)
    _, uniform = objective.draw(torch.zeros(20_000, 1, 1, 1))
    _, late = objective.draw(torch.zeros(20_000, 1, 1, 1), noisier=2.0)
    assert (uniform < 500).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (late < 500).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (int(late.min()) >= 0, int(late.max()) <= 999) == (True, True)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "epsilon"])
def test_a_schedule_that_ends_in_pure_noise_teaches_there_too(prediction: str) -> None:
    config = {"prediction_type": prediction, "rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear",
              "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}  # fmt: skip
    objective = Objective(config, 5.0, torch.device("cpu"))
    t = torch.arange(1000)
    noised = objective.noised(torch.ones(1000, 1, 1, 1), torch.full((1000, 1, 1, 1), 2.0), t)
    assert noised.latents[-1] == 2.0  # the noise alone
    assert noised.weight.isfinite().all()
    assert noised.weight[-1] == 1
    assert (
        noised.weight[0]
        == {"v_prediction": noised.weight.min(), "sample": 5, "epsilon": noised.weight.min()}[prediction]
    )
    # one error of the clean picture, told as v's: what the two kinds are weighted by agrees
    if prediction == "v_prediction":
        as_sample = Objective({**config, "prediction_type": "sample"}, 5.0, torch.device("cpu"))
        error_in_v = 1 / (1 - objective.alphas)
        other = as_sample.noised(noised.latents, noised.latents, t).weight
        torch.testing.assert_close(noised.weight * error_in_v, other, rtol=1e-4, atol=0)


def test_a_rate_stays_and_then_falls_as_a_cosine() -> None:
    how = Optimisation(steps=100, lr=1.0, schedule="cosine", decay_from=0.6)
    assert [how.rate(step) for step in (0, 30, 60)] == [1.0, 1.0, 1.0]
    assert how.rate(80) == pytest.approx(0.51)
    assert how.rate(100) == pytest.approx(0.02)
    rates = [how.rate(step) for step in range(60, 101)]
    assert rates == sorted(rates, reverse=True)
    from_the_start = replace(how, decay_from=0.0)
    assert from_the_start.rate(50) == pytest.approx(0.51)
    assert replace(how, warmup=10).rate(4) == pytest.approx(0.5)


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(TrainingRefused, match="flow"):
        Objective({"prediction_type": "flow"}, None, torch.device("cpu"))


def test_references_of_the_wrong_kind_are_refused(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    with pytest.raises(TrainingRefused, match=r"shape \(5, 40\), the base adapter reads"):
        train_adapter(base, open_data(base, folder, "plus"), tmp_path, small(variant="base"))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"lr": 0.0}, {"precision": "fp8"}, {"variant": "face"}, {"drop_text": 0.99}, {"name": "a/b"},
     {"save_dtype": "float8"}, {"tokens": 0}, {"clip_norm": 0.0}, {"schedule": "cosin"}, {"weight_decay": -1.0},
     {"decay_from": 0.5}, {"schedule": "cosine", "decay_from": 1.0}, {"betas": (0.9, 1.0)}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingRefused):
        AdapterTraining(**{"steps": 4, **wrong})


# ---------------------------------------------------------------------------- a user's folder


def test_pictures_of_one_identity_are_each_others_references(bases: dict[str, CheckpointPaths], folder: Path) -> None:
    base = open_checkpoint(bases["sd15"])
    data = open_data(base, folder)
    assert base.encoder is not None
    own = {n: e.pooled for n in ("a1", "a2", "c") for e in base.encoder.encode([Image.open(folder / f"{n}.png")])}
    for draw in range(5):
        got = data.references(np.array([0, 4]), random.Random(draw)).numpy()
        np.testing.assert_allclose(got, np.stack([own["a2"], own["c"]]), atol=2e-3)  # c has nobody but itself


def test_a_named_reference_is_taken_and_may_lie_anywhere_in_the_folder(
    bases: dict[str, CheckpointPaths], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "refs").mkdir()
    Image.open(folder / "b1.png").save(tmp_path / "refs" / "style.png")
    Image.open(folder / "a1.png").save(tmp_path / "x.png")
    row = {"file_name": "x.png", "text": "a fox", "reference": "refs/style.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    base = open_checkpoint(bases["sd15"])
    data = open_data(base, tmp_path)
    assert base.encoder is not None
    (wanted,) = base.encoder.encode([Image.open(folder / "b1.png")])
    np.testing.assert_allclose(data.references(np.array([0]), random.Random(0))[0], wanted.pooled, atol=2e-3)
    assert len(data) == 1


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("jpg", {"quality": 95})])
def test_a_picture_is_turned_as_its_exif_says_before_it_is_cropped(
    bases: dict[str, CheckpointPaths], tmp_path: Path, suffix: str, options: dict[str, int]
) -> None:
    half = Image.new("RGB", (64, 64), "red")
    half.paste(Image.new("RGB", (64, 32), "blue"), (0, 0))  # blue above red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right: blue lies to the right then
    half.save(tmp_path / f"turned.{suffix}", exif=exif, **options)
    (tmp_path / "turned.txt").write_text("a red fox\n")
    seen = framed(upright(Image.open(tmp_path / f"turned.{suffix}")), 32)
    left, right = seen.getpixel((4, 16)), seen.getpixel((28, 16))
    assert isinstance(left, tuple)
    assert isinstance(right, tuple)
    assert left[0] > 200 > 100 > left[2]
    assert right[2] > 200 > 100 > right[0]
    base = open_checkpoint(bases["sd15"])
    data = open_data(base, tmp_path)
    assert data.captions(np.array([0]), random.Random(0)) == ["a red fox"]
    torch.testing.assert_close(data.latents(np.array([0])).float(), latents_of(base, [seen]), atol=2e-3, rtol=2e-3)


def test_cropping_keeps_the_middle_and_padding_keeps_all() -> None:
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste(Image.new("RGB", (30, 30), "blue"), (30, 0))
    assert {c for _, c in framed(wide, 30).getcolors() or []} == {(0, 0, 255)}
    padded = framed(wide, 30, "pad")
    assert padded.getpixel((15, 2)) == (255, 255, 255)
    assert padded.getpixel((4, 15)) == (255, 0, 0)


def test_latents_are_what_the_engine_decodes(bases: dict[str, CheckpointPaths], folder: Path) -> None:
    base = open_checkpoint(bases["sd15"])
    square = framed(upright(Image.open(folder / "a1.png")), SIZE_PX)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
    vae: Any = base.vae
    with torch.no_grad():
        wanted = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(latents_of(base, [square]), wanted)


def test_latents_are_made_in_float32_whatever_the_base_is_open_in(
    bases: dict[str, CheckpointPaths], folder: Path
) -> None:
    square = framed(upright(Image.open(folder / "a1.png")), SIZE_PX)
    half = open_checkpoint(bases["sd15"], dtype=torch.bfloat16)
    before = base_sha256s(half)
    made = latents_of(half, [square])
    assert base_sha256s(half) == before
    half.vae.float()
    torch.testing.assert_close(made, latents_of(half, [square]), rtol=0, atol=0)


def test_latents_of_another_scaling_are_not_taken_from_the_cache(
    bases: dict[str, CheckpointPaths], tmp_path: Path
) -> None:
    folder, base = write_pictures(tmp_path), open_checkpoint(bases["sd15"])
    first = open_data(base, folder)
    base.vae.register_to_config(scaling_factor=2 * base.vae.config["scaling_factor"])
    torch.testing.assert_close(open_data(base, folder).latents(np.arange(5)), 2 * first.latents(np.arange(5)))


def test_what_was_encoded_is_read_from_the_cache_and_a_changed_picture_is_not(
    bases: dict[str, CheckpointPaths], tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path)
    base = open_checkpoint(bases["sd15"])
    encoded: list[int] = []

    def opened() -> FolderData:
        encoded.append(0)
        return FolderData.open(folder, base, size_px=SIZE_PX, on_picture=lambda done, of: encoded.__setitem__(-1, of))

    first = opened()
    second = opened()
    Image.new("RGB", (48, 48), "teal").save(folder / "c.png")
    third = opened()
    assert encoded == [5, 0, 1]
    assert first.sha256 == second.sha256 != third.sha256
    index = np.arange(4)
    assert torch.equal(first.latents(index), second.latents(index))
    assert torch.equal(first.latents(index), third.latents(index))


def test_all_mistakes_of_a_folder_are_told_at_once(bases: dict[str, CheckpointPaths], tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(tmp_path / "good.png")
    Image.new("RGB", (48, 8)).save(tmp_path / "flat.png")
    (tmp_path / "page.png").write_text("<html>")
    rows = ['{"file_name": "good.png", "text": "a fox"}', '{"file_name": "good.png", "text": "again"}', "{broken",
            '{"file_name": "gone.png", "text": "x"}', '{"file_name": "good.png"}', '{"file_name": "../x.png", "text": "x"}',
            '{"file_name": "page.png", "text": "x"}', '{"file_name": "flat.png", "text": "x"}', "[]",
            '{"file_name": "flat.png", "text": "x", "reference": "no.png"}', '{"file_name": 3, "text": "x"}',
            '{"file_name": "good.png", "text": null}', '{"file_name": "./good.png", "text": "the same again"}',
            '{"file_name": "a\\u0000b.png", "text": "x"}', '{"text": "x"}', '{"file_name": "good.png", "text": 0}']  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(FolderInvalid) as caught:
        open_data(open_checkpoint(bases["sd15"]), tmp_path)
    told = str(caught.value)
    for part in ("metadata.jsonl:2: file_name: good.png is on line 1", "metadata.jsonl:3: this is no JSON",
                 "metadata.jsonl:4: file_name: gone.png is not there", "metadata.jsonl:5: text",
                 "metadata.jsonl:6: file_name: ../x.png is outside", "page.png:1: it is no readable picture",
                 "flat.png:1: its shorter side has 8 px", "metadata.jsonl:9: this is no JSON object",
                 "metadata.jsonl:10: reference: no.png is not there", "metadata.jsonl:11: file_name: this is no text",
                 "metadata.jsonl:12: text: the caption is missing", "metadata.jsonl:13: file_name: ./good.png is on line 1",
                 "metadata.jsonl:14: file_name: 'a\\x00b.png' is no file", "metadata.jsonl:15: file_name is missing",
                 "metadata.jsonl:16: text: this is no text"):  # fmt: skip
        assert part in told


def test_a_caption_may_hold_any_character(tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(tmp_path / "fox.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "fox.png", "text": "a fox\u2028in the snow"}\r\n')
    assert [e.caption for e in read_folder(tmp_path)] == ["a fox in the snow"]


def test_grey_of_sixteen_bits_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.full((48, 48), 128 * 256, dtype=np.uint16)).save(tmp_path / "fox.png")
    assert upright(Image.open(tmp_path / "fox.png")).getpixel((5, 5)) == (128, 128, 128)


def test_pictures_without_captions_and_an_empty_folder_are_told(
    bases: dict[str, CheckpointPaths], tmp_path: Path
) -> None:
    base = open_checkpoint(bases["sd15"])
    with pytest.raises(FolderInvalid, match="no pictures"):
        open_data(base, tmp_path)
    for name in ("one", "two"):
        Image.new("RGB", (48, 48)).save(tmp_path / f"{name}.jpg")
    (tmp_path / "two.txt").write_text("  \n")
    with pytest.raises(FolderInvalid) as caught:
        open_data(base, tmp_path)
    assert [p.file for p in caught.value.problems] == ["one.jpg", "two.txt"]
    with pytest.raises(FolderInvalid, match="no such folder"):
        open_data(base, tmp_path / "nowhere")
