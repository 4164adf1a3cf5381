"""A LoRA of each subject: trained once, on the base alone, with class pictures that cost no subject anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.evaluation import likeness
from ipadapter_engine.evaluation.comparison import compare
from ipadapter_engine.evaluation.dreambooth import SubjectTraining
from ipadapter_engine.evaluation.measuring import Measures
from ipadapter_engine.evaluation.methods import Contestant, Making, Method, pixels_sha256
from ipadapter_engine.evaluation.picture_cache import PictureCache
from ipadapter_engine.evaluation.subjects import Subject, folder_subjects, held_out_subjects
from ipadapter_engine.hashing import sha256_of_file
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.training.character import CharacterTraining
from tests.evaluation.conftest import a_picture
from tests.ipadapter_engine import tiny_checkpoints as tiny

SIZE_PX = 64
SETTINGS = CharacterTraining(steps=2, class_pictures=2, lr=0.01, size_px=SIZE_PX)


@pytest.fixture
def fox(tmp_path: Path) -> list[Subject]:
    for n in range(3):
        a_picture(n, tmp_path / "pictures" / "fox" / f"{n}.png")
    return folder_subjects(tmp_path / "pictures", ["red {subject}", "blue {subject}"], seeds=2)


def test_a_lora_is_trained_once_and_its_picture_is_another(
    engine: Engine, base: Path, clip: Path, fox: list[Subject], tmp_path: Path
) -> None:
    four = [Contestant(m) for m in (Method.TEXT, Method.ADAPTER, Method.LORA, Method.BOTH)]
    measures = Measures(likeness.open_clip(clip))

    def run() -> tuple[list[dict[str, Any]], int]:
        training = SubjectTraining(engine, CheckpointPaths(base), tmp_path / "characters", SETTINGS)
        told = compare(
            engine, four, fox, measures, PictureCache(tmp_path / "cache"),
            making=Making(steps=2, size_px=SIZE_PX, max_batch=4), train=training,
        )  # fmt: skip
        (trained,) = told.trained.values()
        assert trained.model.sha256 == sha256_of_file(trained.model.file)
        assert not {"subject", "phrase"} & set(trained.settings)
        assert (trained.settings["steps"], trained.settings["size_px"]) == (2, SIZE_PX)
        return told.rows, told.made

    rows, made = run()
    assert made == 16
    text, adapter, lora, together = rows[:4]
    assert lora["figures"]["clip_t"] != text["figures"]["clip_t"]
    assert together["figures"]["clip_i"] not in (lora["figures"]["clip_i"], adapter["figures"]["clip_i"])
    (file,) = (tmp_path / "characters").rglob("character.safetensors")
    assert lora["subject_bytes"] == file.stat().st_size
    assert together["subject_bytes"] == file.stat().st_size + 24 * 4
    before = file.stat().st_mtime_ns
    assert run()[1] == 0
    assert file.stat().st_mtime_ns == before
    file.write_bytes(b"damaged")
    run()
    assert file.stat().st_size == lora["subject_bytes"]


def test_it_trains_on_the_engines_own_checkpoint_where_the_encoder_lies_elsewhere(
    fox: list[Subject], tmp_path: Path
) -> None:
    base = tiny.write_sd15(tmp_path / "base")
    encoder = tiny.write_encoder(tmp_path / "elsewhere")
    tiny.write_safetensors(base / "ip_adapter.safetensors", tiny.base_adapter_state(tiny.open_unet(base)))
    paths = CheckpointPaths(base, encoder=encoder)
    training = SubjectTraining(Engine.open(paths), paths, tmp_path / "characters", SETTINGS)
    assert training(fox[0], fox[0].references()).model.file.exists()
    again = replace(SETTINGS, seed=5)
    other = SubjectTraining(training.engine, paths, tmp_path / "characters", again)(fox[0], fox[0].references())
    assert other.model.file != training(fox[0], fox[0].references()).model.file


def test_the_same_bytes_in_another_shape_or_mode_are_another_picture() -> None:
    pictures = [
        Image.frombytes("RGB", (2, 4), bytes(24)), Image.frombytes("RGB", (4, 2), bytes(24)),
        Image.frombytes("L", (4, 6), bytes(24)),
    ]  # fmt: skip
    assert len({pixels_sha256(p) for p in pictures}) == 3


def test_a_mascots_class_pictures_are_of_its_world_and_none_of_its_seconds(tmp_path: Path) -> None:
    base = tiny.write_studio(tmp_path / "base")
    engine = Engine.open(CheckpointPaths(base))
    settings = CharacterTraining(steps=1, class_pictures=3)
    training = SubjectTraining(engine, CheckpointPaths(base), tmp_path / "characters", settings)
    one, two = held_out_subjects(2, 1, 1, size_px=engine.family.size_px, references=3)
    first = training(one, one.references())
    assert first.words == "sks mascot"
    assert first.settings["size_px"] == engine.family.size_px
    assert all(p.startswith("a mascot, ") for p in first.settings["class_prompts"])
    assert len(set(first.settings["class_prompts"])) > 1
    (drawn,) = (tmp_path / "characters" / "class").glob("*.safetensors")
    made = drawn.stat().st_mtime_ns
    second = training(two, two.references())
    assert second.model.sha256 != first.model.sha256
    assert second.settings == first.settings
    assert drawn.stat().st_mtime_ns == made
    assert list((tmp_path / "characters" / "class").iterdir()) == [drawn]
