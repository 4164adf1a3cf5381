"""The renderer knows what it draws, and draws the same again."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ipadapter_engine.training.captions import describe_identity, prompt_for, train_tokenizer
from ipadapter_engine.training.mascots import (
    ATTRIBUTES,
    COLOURS,
    SCENES,
    Identity,
    Staging,
    all_identities,
    held_out_identities,
    random_staging,
    render,
    training_identities,
    truth,
)

WHO = Identity("star", "yellow", "pointy", "stripes", "scarf")


def test_no_character_is_both_trained_on_and_held_out() -> None:
    held, trained = held_out_identities(), training_identities()
    assert not set(held) & set(trained)
    assert len(held) + len(trained) == len(set(all_identities()))
    assert len(held) >= 100


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
        who = Identity(now["shape"], now["colour"], now["ears"], now["pattern"], now["accessory"])
        staging = Staging(now["view"], now["pose"], now["expression"], now["scene"])
        assert truth(who, staging)[attribute] == ATTRIBUTES[attribute].values.index(value)
        pictures.append(render(who, staging, seed=1).tobytes())
    assert len(set(pictures)) == len(pictures)


def test_a_prompt_never_names_who() -> None:
    rng = random.Random(0)
    for _ in range(50):
        assert not set(prompt_for(random_staging(rng)).replace(",", "").split()) & {*COLOURS, "star", "hat", "scarf"}


def test_the_tokenizer_has_a_word_for_everything_it_draws_and_letters_for_the_rest(tmp_path: object) -> None:
    from pathlib import Path

    tokenizer = train_tokenizer(Path(str(tmp_path)))
    assert tokenizer.tokenize(describe_identity(WHO)) == [
        w + "</w>" for w in describe_identity(WHO).replace(",", " ,").split()
    ]
    assert tokenizer.eos_token not in tokenizer.tokenize("Zebra ski jump 42 é")
    assert len(SCENES) == 6
