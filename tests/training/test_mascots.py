"""The renderer knows what it draws, and draws the same again."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from ipadapter_engine.training.captions import describe_identity, describe_staging, prompt_for, train_tokenizer
from ipadapter_engine.training.drawing import pose_picture, render
from ipadapter_engine.training.mascots import (
    ATTRIBUTES,
    IDENTITY_ATTRIBUTES,
    POSES,
    STAGING_ATTRIBUTES,
    VIEWS,
    Identity,
    Staging,
    all_identities,
    held_out_identities,
    random_staging,
    training_identities,
    truth,
)

WHO = Identity("star", "yellow", "pointy", "round", "stripes", "mint", "scarf", "gold")


def test_the_vocabulary_is_as_rich_as_was_asked_for() -> None:
    counts = {a.name: len(a.values) for a in ATTRIBUTES}
    assert len(IDENTITY_ATTRIBUTES) >= 8
    least = {"view": 4, "expression": 6, "pose": 5, "scene": 8, "style": 4}
    assert all(counts[name] >= count for name, count in least.items())


def test_no_character_is_both_trained_on_and_held_out() -> None:
    held, trained = held_out_identities(), training_identities()
    assert not set(held) & set(trained)
    assert len(held) + len(trained) == len(set(all_identities()))
    assert len(held) >= 200


def test_the_same_seed_draws_the_same_picture() -> None:
    one, same, other = (np.asarray(render(WHO, Staging(), seed=s)) for s in (3, 3, 4))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("attribute", range(len(ATTRIBUTES)))
def test_every_attribute_changes_the_picture(attribute: int) -> None:
    values = {a.name: a.values[0] for a in ATTRIBUTES}
    pictures = []
    for value in ATTRIBUTES[attribute].values:
        now = {**values, ATTRIBUTES[attribute].name: value}
        who = Identity(*(now[a.name] for a in IDENTITY_ATTRIBUTES))
        staging = Staging(*(now[a.name] for a in STAGING_ATTRIBUTES))
        assert truth(who, staging)[attribute] == ATTRIBUTES[attribute].values.index(value)
        pictures.append(render(who, staging, seed=1).tobytes())
    assert len(set(pictures)) == len(pictures)


def test_a_prompt_never_names_who() -> None:
    rng = random.Random(0)
    who = {w for a in IDENTITY_ATTRIBUTES for w in a.values} | {"ears", "eyes", "eye", "antennas"}
    for _ in range(50):
        assert not set(prompt_for(random_staging(rng)).replace(",", "").split()) & who


def test_a_prompt_may_leave_the_style_to_the_usual_one() -> None:
    assert prompt_for(Staging()) == "a mascot, standing, happy, front view, in a studio, outlined style"
    assert prompt_for(Staging(), style=False) == "a mascot, standing, happy, front view, in a studio"


def test_the_tokenizer_has_a_word_for_everything_it_draws_and_letters_for_the_rest(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tmp_path)
    rng = random.Random(1)
    for who in held_out_identities()[:50]:
        told = f"{describe_identity(who)}, {describe_staging(random_staging(rng))}"
        assert tokenizer.tokenize(told) == [w + "</w>" for w in told.replace(",", " ,").split()]
        assert len(tokenizer(told)["input_ids"]) <= tokenizer.model_max_length
    assert tokenizer.eos_token not in tokenizer.tokenize("Zebra ski jump 42 é")


def test_a_skeleton_shows_pose_and_view_and_nothing_of_who() -> None:
    shown = {(pose, view): pose_picture(Staging(view, pose), seed=3).tobytes() for pose in POSES for view in VIEWS}
    assert len(set(shown.values())) == len(shown)
    same = pose_picture(Staging("left", "waving", "sad", "night", "pixel"), seed=3).tobytes()
    assert same == shown["waving", "left"]
