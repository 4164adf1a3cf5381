"""The table's arithmetic on pictures that are really made, and that a killed run goes on where it was."""

from __future__ import annotations

import os
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.emphasis import AdapterSettings
from ipadapter_engine.errors import GenerationFailed
from ipadapter_engine.evaluation import likeness
from ipadapter_engine.evaluation.comparison import compare
from ipadapter_engine.evaluation.making import machine_of
from ipadapter_engine.evaluation.measuring import Measures
from ipadapter_engine.evaluation.methods import Contestant, Making, Method, TrainedSubject, weights_bytes
from ipadapter_engine.evaluation.picture_cache import CachedPicture, PictureCache, request_key
from ipadapter_engine.evaluation.subjects import Subject, folder_subjects
from ipadapter_engine.hashing import sha256_of_file
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import CharacterModel, ControlPrompt, ReferencePrompt, SourcePicture
from ipadapter_engine.requests import GenerationRequest
from tests.evaluation.conftest import a_picture
from tests.ipadapter_engine import tiny_checkpoints as tiny

SIZE_PX = 64
MAKING = Making(steps=2, size_px=SIZE_PX, max_batch=4)
CONTESTANTS = [Contestant(Method.TEXT), Contestant(Method.ADAPTER, shared_bytes=10), Contestant(Method.PLUS, "plus")]


@pytest.fixture
def subjects(tmp_path: Path) -> list[Subject]:
    for name, count in (("cat", 1), ("fox", 3)):
        for n in range(count):
            a_picture(n + len(name) * count, tmp_path / "pictures" / name / f"{n}.png")
    return folder_subjects(tmp_path / "pictures", ["red {subject}", "blue {subject}"], seeds=2)


@pytest.fixture(scope="module")
def measures(clip: Path, dino: Path) -> Measures:
    return Measures(likeness.open_clip(clip), likeness.open_dino(dino))


def test_every_method_makes_every_shot_and_is_measured_on_all_of_them(
    engine: Engine, subjects: list[Subject], measures: Measures, tmp_path: Path
) -> None:
    cache, heard = PictureCache(tmp_path / "cache"), []
    told = compare(
        engine, CONTESTANTS, subjects, measures, cache, making=MAKING, on_progress=lambda a, b: heard.append((a, b))
    )
    assert (told.made, told.found) == (24, 0)
    assert heard[-1] == (24, 24)
    text, adapter, plus, references = told.rows
    assert [r["pictures"] for r in told.rows] == [8, 8, 8, 3]
    # the adapter's row again, by hand, from pictures that the engine makes now
    means = {"clip_i": [], "clip_t": [], "dino": [], "diversity": []}
    for subject in subjects:
        own = subject.references()
        requests = [
            GenerationRequest(
                s.said(subject.words), s.seed, (engine.look_at(own[0]),), width_px=SIZE_PX, height_px=SIZE_PX, steps=2
            )
            for s in subject.shots
        ]
        pictures = [g.image for g in engine.generate(requests, max_batch=4)]
        assert measures.clip is not None
        assert measures.dino is not None
        seen, there = measures.clip.pictures(pictures), measures.clip.pictures(own)
        means["clip_i"] += [float((row @ there.T).mean()) for row in seen]
        texts = measures.clip.texts([s.said(subject.words) for s in subject.shots])
        means["clip_t"] += [float(a @ b) for a, b in zip(seen, texts, strict=True)]
        means["dino"] += [float(x) for x in (measures.dino.pictures(pictures) @ measures.dino.pictures(own).T).mean(1)]
        means["diversity"] += [1 - float(seen[0] @ seen[1]), 1 - float(seen[2] @ seen[3])]
    for name, values in means.items():
        assert adapter["figures"][name]["value"] == pytest.approx(np.mean(values), abs=2e-4), name
    assert adapter["figures"]["clip_i"]["value"] != text["figures"]["clip_i"]["value"]
    assert plus["figures"]["clip_i"]["value"] != adapter["figures"]["clip_i"]["value"]
    assert text["figures"]["identity"] is None
    assert text["against_text"] is None
    less = adapter["figures"]["clip_t"]["value"] - text["figures"]["clip_t"]["value"]
    assert adapter["against_text"]["clip_t"]["value"] == pytest.approx(less, abs=2e-4)
    # a reference is compared with the subject's other ones: the cat, of which there is one picture, says nothing
    fox = measures.clip.pictures(subjects[1].references())
    others = [float(fox[a] @ fox[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert references["figures"]["clip_i"]["value"] == pytest.approx(np.mean(others), abs=2e-4)
    assert text["figures"]["setup_s"]["value"] == 0.0
    assert adapter["figures"]["setup_s"]["value"] > 0.0
    assert (text["subject_bytes"], adapter["subject_bytes"], adapter["shared_bytes"]) == (0, 24 * 4, 10)
    assert plus["subject_bytes"] == 5 * 40 * 4
    assert [len(images) for images, _ in told.strips] == [4, 4]
    assert all(r["figures"]["image_s"] is not None and r["notes"] == [] for r in (text, adapter, plus))


def test_the_subjects_hash_is_of_their_prompts_seeds_and_pixels(
    engine: Engine, subjects: list[Subject], tmp_path: Path
) -> None:
    def told(whom: list[Subject]) -> str:
        cache = PictureCache(tmp_path / "cache")
        return compare(engine, CONTESTANTS[:1], whom, Measures(None), cache, making=MAKING).subjects_sha256

    cat = subjects[0]
    others = [
        replace(cat, name="tom"),
        replace(cat, shots=cat.shots[:2]),
        replace(cat, shots=tuple(replace(s, seed=s.seed + 7) for s in cat.shots)),
        replace(cat, references=lambda: [p.rotate(180) for p in cat.references()]),
    ]
    assert told([cat]) == told([cat])
    assert len({told([s]) for s in (cat, *others)}) == 5


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_and_ends_with_the_same_figures(
    engine: Engine, subjects: list[Subject], measures: Measures, tmp_path: Path
) -> None:
    whole = compare(engine, CONTESTANTS, subjects, measures, PictureCache(tmp_path / "whole"), making=MAKING)

    def kill(done: int, of: int) -> None:
        if done >= of // 2:
            raise Killed

    cache = PictureCache(tmp_path / "killed")
    with pytest.raises(Killed):
        compare(engine, CONTESTANTS, subjects, measures, cache, making=MAKING, on_progress=kill)
    damaged = next(cache.folder.rglob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:60])
    ended = compare(engine, CONTESTANTS, subjects, measures, cache, making=MAKING)
    assert (ended.made, ended.found) == (13, 11)
    again = compare(engine, CONTESTANTS, subjects, measures, cache, making=MAKING)
    assert (again.made, again.found) == (0, 24)
    for a, b in zip(whole.rows, ended.rows, strict=True):
        for name in ("clip_i", "clip_t", "dino", "diversity"):
            assert a["figures"][name] == b["figures"][name]
    assert again.rows[0]["figures"]["image_s"] == ended.rows[0]["figures"]["image_s"]
    # the damaged picture was made again alone, in a batch that a whole run has not: its time is left out, and told
    notes = [n for row in ended.rows for n in row["notes"]]
    assert len(notes) == 1
    assert "s/image is of 7 of 8 pictures" in notes[0]
    assert not list(cache.folder.rglob("*.partial"))


def test_times_of_other_batches_and_machines_are_not_this_runs(
    engine: Engine, subjects: list[Subject], tmp_path: Path
) -> None:
    cache, text = PictureCache(tmp_path / "cache"), CONTESTANTS[:1]

    def image_s(making: Making) -> tuple[Any, list[str]]:
        row = compare(engine, text, subjects, Measures(None), cache, making=making).rows[0]
        return row["figures"]["image_s"], row["notes"]

    assert image_s(MAKING)[0] is not None
    figure, notes = image_s(replace(MAKING, max_batch=2))  # the same pictures, found
    assert figure is None
    assert "0 of 8 pictures" in notes[0]
    for file in cache.folder.rglob("*.png"):
        found = cache.find(file.stem)
        assert found is not None
        assert (found.batch, found.where) == (4, machine_of(engine))
        cache.put(file.stem, replace(found, where="another machine"))
    assert image_s(MAKING)[0] is None


def test_every_subject_has_an_order_of_its_own_that_is_the_same_every_time(
    engine: Engine, subjects: list[Subject], tmp_path: Path
) -> None:
    order: list[str] = []

    class Watched(PictureCache):
        def put(self, key: str, picture: CachedPicture) -> None:
            order.append(by[key])
            super().put(key, picture)

    by: dict[str, str] = {}
    for subject in subjects:
        references = subject.references()
        for contestant in CONTESTANTS:
            heard = (
                () if contestant.method is Method.TEXT else (engine.look_at(references[0], adapter=contestant.adapter),)
            )
            for s in subject.shots:
                request = GenerationRequest(
                    s.said(subject.words), s.seed, heard, scale=1.0 if heard else 0.0, width_px=SIZE_PX,
                    height_px=SIZE_PX, steps=2, scales={"plus": 1.0} if contestant.adapter == "plus" else {},
                )  # fmt: skip
                by[request_key(request, engine)] = contestant.method.value
    compare(engine, CONTESTANTS, subjects, Measures(None), Watched(tmp_path / "cache"), making=MAKING)
    orders = [random.Random(n).sample([c.method.value for c in CONTESTANTS], 3) for n in range(len(subjects))]
    assert order == [m for one in orders for m in one for _ in range(4)]
    assert orders[0] != orders[1]


def test_a_lora_is_loaded_once_before_its_pictures_are_timed(
    engine: Engine, base: Path, subjects: list[Subject], tmp_path: Path
) -> None:
    """Its file is gone before the first picture is asked for: the timed region cannot have read it."""
    file = tiny.write_character(tmp_path / "lora", base)
    trained = TrainedSubject(CharacterModel(file, sha256_of_file(file)), "sks fox", file.stat().st_size, 5.0)

    class Gone(PictureCache):
        def find(self, key: str) -> CachedPicture | None:
            file.unlink(missing_ok=True)
            return super().find(key)

    methods = [Contestant(Method.LORA), Contestant(Method.BOTH)]
    told = compare(
        engine, methods, subjects[:1], Measures(None), Gone(tmp_path / "cache"), making=MAKING,
        train=lambda subject, references: trained,
    )  # fmt: skip
    assert not file.exists()
    assert told.trained == {"cat": trained}
    lora, both = (r["figures"]["setup_s"]["value"] for r in told.rows)
    assert 5.0 < lora < 8.0
    assert both > lora  # it looks at the reference besides
    with pytest.raises(ValueError, match="`train` is not given"):
        compare(engine, methods, subjects, Measures(None), Gone(tmp_path / "cache"), making=MAKING)


def test_a_picture_of_nan_is_neither_measured_nor_kept(base: Path, subjects: list[Subject], tmp_path: Path) -> None:
    broken = Engine.open(CheckpointPaths(base))
    with torch.no_grad():
        broken.checkpoint.unet.conv_out.bias.fill_(float("nan"))
    cache = PictureCache(tmp_path / "cache")
    with pytest.raises(GenerationFailed, match="NaN") as failed:
        compare(broken, CONTESTANTS[:1], subjects, Measures(None), cache, making=MAKING)
    assert "ONMODEL_ENGINE__DTYPE" in failed.value.next_step
    assert not list(cache.folder.rglob("*.png"))


REFERENCE = ReferencePrompt(np.ones(24, np.float32))
CONTROL = ControlPrompt(np.zeros((4, 4, 3), np.uint8), "edges")
SOURCE = SourcePicture(np.zeros((4, 4, 3), np.uint8), 0.8)
CHARACTER = CharacterModel(Path("a.safetensors"), "a" * 64)
REQUEST = GenerationRequest(
    "red fox", 1, (REFERENCE,), controls=(CONTROL,), character=CHARACTER, width_px=SIZE_PX, height_px=SIZE_PX,
    regions={"left": np.full((4, 4), 255, np.uint8)},
)  # fmt: skip
OTHER: dict[type, dict[str, object]] = {
    GenerationRequest: {
        "prompt": "blue fox", "seed": 2, "references": (), "negative_prompt": "cat", "scale": 0.5, "window": (0.0, 0.5),
        "width_px": 128, "height_px": 128, "steps": 3, "guidance": 2.0, "scheduler": "ddim", "controls": (),
        "character": None, "scales": {"plus": 0.5}, "settings": {"identity": AdapterSettings(blocks="style")},
        "regions": {"left": np.eye(4, dtype=np.uint8)}, "source": SourcePicture(np.zeros((4, 4, 3), np.uint8)),
        "guidance_window": (0.0, 0.5), "loras": (CharacterModel(Path("b.safetensors"), "b" * 64),),
    },
    ReferencePrompt: {
        "embedding": np.full(24, 2, np.float32), "weight": 0.5, "adapter": "plus", "negative": True, "region": "left",
        "face": np.ones(8, np.float32), "picture": np.zeros((4, 4, 3), np.uint8),
    },
    AdapterSettings: {"blocks": {"others": 0.5}, "window": (0.0, 0.5), "steps": (0.5,), "combine": "add"},
    SourcePicture: {
        "picture": np.ones((4, 4, 3), np.uint8), "strength": 0.5, "mask": np.full((4, 4), 255, np.uint8),
    },
    ControlPrompt: {
        "picture": np.ones((4, 4, 3), np.uint8), "kind": "depth", "strength": 0.5, "window": (0.0, 0.5),
    },
    CharacterModel: {"sha256": "b" * 64, "strength": 0.5},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, f.name) for k in OTHER for f in fields(k) if (k, f.name) != (CharacterModel, "file")],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_every_field_of_a_request_changes_its_key(engine: Engine, kind: type, name: str) -> None:
    changed: dict[type, Any] = {
        k: replace(v, **{name: OTHER[k][name]}) if k is kind else v  # type: ignore[type-var]
        for k, v in ((GenerationRequest, REQUEST), (ReferencePrompt, REFERENCE), (ControlPrompt, CONTROL),
                     (CharacterModel, CHARACTER), (AdapterSettings, AdapterSettings()), (SourcePicture, SOURCE))
    }  # fmt: skip
    request = changed[GenerationRequest]
    if kind is ReferencePrompt:
        request = replace(request, references=(changed[kind],))
    elif kind is ControlPrompt:
        request = replace(request, controls=(changed[kind],))
    elif kind is CharacterModel:
        request = replace(request, character=changed[kind])
    elif kind is AdapterSettings:
        request = replace(request, settings={"identity": changed[kind]})
    elif kind is SourcePicture:
        request = replace(request, source=changed[kind])
    before = replace(REQUEST, source=SOURCE) if kind is SourcePicture else REQUEST
    assert request_key(request, engine) != request_key(before, engine)


def test_what_none_means_and_where_a_model_lies_make_no_other_picture(engine: Engine) -> None:
    family = engine.family
    said = replace(REQUEST, steps=family.steps, guidance=family.guidance, scheduler=family.scheduler)
    moved = replace(REQUEST, character=replace(CHARACTER, file=Path("elsewhere.safetensors")))
    copied = replace(REQUEST, references=(ReferencePrompt(np.ones(24, np.float32)),))
    assert {request_key(r, engine) for r in (said, moved, copied)} == {request_key(REQUEST, engine)}


def test_a_key_is_of_the_sampler_and_the_decoding_as_well(base: Path, engine: Engine, tmp_path: Path) -> None:
    before = request_key(REQUEST, engine)
    for number, (file, changes) in enumerate((
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}), ("vae/config.json", {"scaling_factor": 0.5}),
        ("model_index.json", {"force_zeros_for_empty_prompt": True}),
    )):  # fmt: skip
        other = tiny.copy_of(base, tmp_path / str(number))
        tiny.change_json(other / file, **changes)
        assert request_key(REQUEST, Engine.open(CheckpointPaths(other))) != before


def test_the_cache_gives_back_pixels_and_time_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    cache.put("ab" * 32, CachedPicture(pixels, 0.125, 4, "a machine, 2 threads"))
    old, young = tmp_path / "ab" / "x.1.partial", tmp_path / "ab" / "x.2.partial"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    found = PictureCache(tmp_path).find("ab" * 32)
    assert (old.exists(), young.exists()) == (False, True)
    assert found is not None
    assert (found.pixels == pixels).all()
    assert (found.seconds, found.batch, found.where) == (0.125, 4, "a machine, 2 threads")
    Image.fromarray(pixels).save(tmp_path / "ab" / f"{'ab' * 32}.png")  # a picture without its time
    assert cache.find("ab" * 32) is None


def test_of_an_encoders_folder_only_what_is_opened_counts(tmp_path: Path) -> None:
    for name, size in (("model.safetensors", 5), ("model.fp16.safetensors", 3)):
        (tmp_path / name).write_bytes(bytes(size))
    assert weights_bytes(tmp_path) == 5
    (tmp_path / "model.safetensors").unlink()
    for n in (1, 2):
        (tmp_path / f"model-0000{n}-of-00002.safetensors").write_bytes(bytes(7))
    assert weights_bytes(tmp_path) == 14
    assert weights_bytes(None) == 0
