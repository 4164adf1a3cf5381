"""Taught words (textual inversion): what diffusers makes of them, and a base that is as before without them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.words import Word, Words
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints, Engines
from tests.ipadapter_engine.test_diffusers_parity import latents_of_diffusers, request_for

TOLERANCE = 1e-4
LAYOUTS = pytest.mark.parametrize("layout", ["sd15", "sdxl"])
VECTORS = {"fox": 1, "blue_cat": 3}  # a word of one vector and one of several


def vectors(seed: int, count: int) -> Tensor:
    return torch.randn(count, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))


def pair(name: str, layout: str) -> list[Tensor]:
    """A word's vectors for each text encoder."""
    return [vectors(len(name) + 100 * i, VECTORS[name]) for i in range(2 if layout == "sdxl" else 1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Safetensors files of both words, by layout."""
    root = tmp_path_factory.mktemp("words")
    out: dict[str, dict[str, Path]] = {"sd15": {}, "sdxl": {}}
    for layout, words in out.items():
        for name in VECTORS:
            state = dict(zip(("clip_l", "clip_g"), pair(name, layout), strict=False))
            words[name] = root / f"{layout}-{name}.safetensors"
            save_file(state if layout == "sdxl" else {"emb_params": state["clip_l"]}, words[name])
    return out


@pytest.fixture(scope="module")
def taught(checkpoints: Checkpoints, files: dict[str, dict[str, Path]]) -> dict[str, Engine]:
    """An engine a layout with both words."""
    return {
        layout: Engine.open(replace(checkpoints.paths(layout, None), words=words)) for layout, words in files.items()
    }


@pytest.fixture(scope="module")
def pipelines(checkpoints: Checkpoints) -> dict[str, Any]:
    """diffusers' own, with both words."""
    out: dict[str, Any] = {}
    for layout, kind in (("sd15", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)):
        pipe = kind.from_pretrained(checkpoints.folders[layout], local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        for name in VECTORS:
            for part, vector in zip(("", "_2"), pair(name, layout), strict=False):
                pipe.load_textual_inversion(
                    vector, token=f"<{name}>", text_encoder=getattr(pipe, f"text_encoder{part}"),
                    tokenizer=getattr(pipe, f"tokenizer{part}"),
                )  # fmt: skip
        out[layout] = pipe
    return out


def refusal_of(paths: CheckpointPaths) -> CheckpointRefused:
    with pytest.raises(CheckpointRefused) as refusal:
        open_checkpoint(paths)
    assert refusal.value.next_step
    assert "\n" not in refusal.value.message
    return refusal.value


# ---------------------------------------------------------------------- as diffusers


@LAYOUTS
@pytest.mark.parametrize("prompt", ["a <fox>", "<blue_cat> beside a red <fox>, <blue_cat>", "a red fox"])
@pytest.mark.parametrize("negative", ["", "<blue_cat> <fox>"])
def test_words_in_prompts_and_negative_prompts_agree(
    taught: dict[str, Engine], pipelines: dict[str, Any], layout: str, prompt: str, negative: str
) -> None:
    engine, request = taught[layout], request_for(layout, (), prompt=prompt, negative_prompt=negative, steps=3)
    theirs = latents_of_diffusers(pipelines[layout], engine, request, [])
    words = engine.checkpoint.words
    whole = replace(request, prompt=words.expanded(prompt), negative_prompt=words.expanded(negative))
    assert np.abs(engine.generate([whole])[0].latents - theirs).max() <= TOLERANCE


@LAYOUTS
def test_a_word_changes_the_picture_and_no_other_one(taught: dict[str, Engine], engines: Engines, layout: str) -> None:
    plain, with_word = (request_for(layout, (), prompt=prompt, steps=2) for prompt in ("a red fox", "a <fox>"))
    made, told = (o.latents for o in taught[layout].generate([plain, with_word]))
    (alone,) = engines(layout, None).generate([plain])
    assert np.abs(made - alone.latents).max() <= 1e-5
    assert np.abs(told - made).max() > 0.01


# ---------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("a red fox", "a red fox"),
        ("a <fox>", "a <fox>"),
        ("<blue_cat>, red", "<blue_cat> <blue_cat>_1 <blue_cat>_2, red"),
        ("<BLUE_cat> and <blue_cat>", "<blue_cat> <blue_cat>_1 <blue_cat>_2 and <blue_cat> <blue_cat>_1 <blue_cat>_2"),
        ("<blue_cat> <blue_cat>_1 <blue_cat>_2", "<blue_cat> <blue_cat>_1 <blue_cat>_2"),
        ("<other> blue_cat", "<other> blue_cat"),
    ],
)
def test_a_word_of_several_vectors_is_written_out_once(prompt: str, expanded: str) -> None:
    words = Words([Word(name, (vectors(0, count),)) for name, count in VECTORS.items()])
    assert words.expanded(prompt) == expanded
    assert words.expanded(words.expanded(prompt)) == expanded


def test_without_taught_words_a_prompt_stays_as_it_is() -> None:
    assert Words().expanded("a <fox>") == "a <fox>"
    assert Words().named_in("a <fox>") == ()


# ---------------------------------------------------------------------- lineage


@LAYOUTS
def test_a_word_has_a_part_where_a_prompt_uses_it(
    taught: dict[str, Engine], files: dict[str, dict[str, Path]], layout: str
) -> None:
    checkpoint = taught[layout].checkpoint
    assert checkpoint.roles_of(GenerationRequest("a fox", 1)) == ()
    assert checkpoint.roles_of(GenerationRequest("a <Fox>", 1)) == ("word fox",)
    both = GenerationRequest("a <fox>", 1, negative_prompt="<blue_cat>")
    assert checkpoint.roles_of(both) == ("word blue_cat", "word fox")
    told = checkpoint.beside["word fox"]
    assert (told.name, told.sha256) == (
        files[layout]["fox"].name,
        hashlib.sha256(files[layout]["fox"].read_bytes()).hexdigest(),
    )
    assert "word fox" not in {m.role for m in checkpoint.models}


# ---------------------------------------------------------------------- in and out


@LAYOUTS
def test_taken_out_again_tokenizers_and_text_encoders_are_as_they_were(
    checkpoints: Checkpoints, files: dict[str, dict[str, Path]], layout: str
) -> None:
    plain = open_checkpoint(checkpoints.paths(layout, None))
    opened = open_checkpoint(replace(checkpoints.paths(layout, None), words=files[layout]))
    opened.words.eject()
    for now, before in zip(opened.text, plain.text, strict=True):
        assert now.tokenizer.get_vocab() == before.tokenizer.get_vocab()
        assert now.tokenizer("a <fox>")["input_ids"] == before.tokenizer("a <fox>")["input_ids"]
        ours, theirs = now.model.state_dict(), before.model.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_in_and_out_and_in_again_is_in(checkpoints: Checkpoints, files: dict[str, dict[str, Path]]) -> None:
    opened = open_checkpoint(replace(checkpoints.paths("sd15", None), words=files["sd15"]))
    (part,) = opened.text
    ids = part.tokenizer("a <fox>")["input_ids"]
    with torch.inference_mode():
        before = part.model(torch.tensor([ids])).last_hidden_state
        opened.words.eject()
        opened.words.inject()
        opened.words.inject()
        assert part.tokenizer("a <fox>")["input_ids"] == ids
        assert torch.equal(part.model(torch.tensor([ids])).last_hidden_state, before)


def test_pooled_text_ends_where_the_prompt_ends(
    checkpoints: Checkpoints, files: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    """Older configurations call the last token 2, and the highest one was taken for it: a word's is higher."""
    folder = tiny.copy_of(checkpoints.folders["sdxl"], tmp_path / "legacy")
    tiny.change_json(folder / "text_encoder_2" / "config.json", eos_token_id=2)
    pooled = []
    for base in (checkpoints.folders["sdxl"], folder):
        part = open_checkpoint(CheckpointPaths(base, words=files["sdxl"])).text[1]
        ids = part.tokenizer(["a <fox>, red", "a red cat"], padding="max_length", max_length=16, return_tensors="pt")
        with torch.inference_mode():
            pooled.append(part.model(ids["input_ids"]).text_embeds)
    assert json.loads((folder / "text_encoder_2" / "config.json").read_text())["eos_token_id"] == 2
    assert torch.equal(pooled[0], pooled[1])


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("learned_embeds.safetensors", lambda v: {"<cat-toy>": v}),
        ("learned_embeds.bin", lambda v: {"<cat-toy>": v}),
        ("one.bin", lambda v: v),
        ("old.pt", lambda v: {"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "old", "step": 9}),
        ("half.safetensors", lambda v: {"emb_params": v.half()}),
    ],
)
def test_every_kind_of_file_opens(
    checkpoints: Checkpoints, tmp_path: Path, name: str, content: Callable[[Tensor], Any]
) -> None:
    wanted, file = vectors(4, 2), tmp_path / name
    if file.suffix == ".safetensors":
        save_file(content(wanted), file)
    else:
        torch.save(content(torch.nn.Parameter(wanted)), file)
    opened = open_checkpoint(replace(checkpoints.paths("sd15", None), words={"toy": file}))
    ids = opened.text[0].tokenizer("<toy> <toy>_1", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = opened.text[0].model.get_input_embeddings()(ids)[0]
    assert torch.allclose(found, wanted, atol=2e-3 if "half" in name else 0)


@pytest.mark.parametrize(
    ("layout", "state", "told"),
    [
        ("sd15", {"<a>": torch.zeros(1, 1024)}, "1024 numbers a vector (Stable Diffusion 2)"),
        ("sd15", {"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 32)}, "(SDXL)"),
        ("sdxl", {"<a>": torch.zeros(1, 32)}, "read 32 and 32"),
        ("sdxl", {"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(2, 32)}, "another number for each"),
        ("sd15", {"<a>": torch.zeros(15, 32)}, "more than a prompt's 14"),
        ("sd15", {"<a>": torch.zeros(0, 32)}, "shape is (0, 32)"),
        ("sd15", {"<a>": torch.zeros(1, 1, 32)}, "shape is (1, 1, 32)"),
        ("sd15", {"<a>": torch.full((1, 32), float("nan"))}, "NaN"),
        ("sd15", {"a": torch.zeros(2), "b": torch.zeros(2)}, "holds no vectors of a word"),
    ],
)
def test_a_word_that_does_not_fit_is_refused(
    checkpoints: Checkpoints, tmp_path: Path, layout: str, state: dict[str, Tensor], told: str
) -> None:
    save_file(state, tmp_path / "word.safetensors")
    paths = replace(checkpoints.paths(layout, None), words={"word": tmp_path / "word.safetensors"})
    assert told in refusal_of(paths).message


def test_a_word_s_file_that_is_missing_or_runs_code_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    paths = checkpoints.paths("sd15", None)
    assert "ONMODEL_ENGINE__WORDS__FOX" in refusal_of(replace(paths, words={"fox": tmp_path / "fox.pt"})).next_step
    torch.save({"string_to_param": Path}, tmp_path / "fox.pt")
    assert "not a plain file of weights" in refusal_of(replace(paths, words={"fox": tmp_path / "fox.pt"})).message


def test_a_name_that_no_setting_ends_in_is_refused(checkpoints: Checkpoints, files: dict[str, dict[str, Path]]) -> None:
    paths = replace(checkpoints.paths("sd15", None), words={"Cat Toy": files["sd15"]["fox"]})
    assert "Cat Toy" in refusal_of(paths).message


def test_a_word_that_the_tokenizer_has_already_is_refused(
    checkpoints: Checkpoints, files: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    opened = open_checkpoint(replace(checkpoints.paths("sd15", None), words=files["sd15"]))
    again = Words([Word("fox", (vectors(1, 1),))], opened.text)
    with pytest.raises(CheckpointRefused, match="<fox> of its own"):
        again.inject()
