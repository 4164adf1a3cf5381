"""The datasets' own layouts, read to the last picture and prompt; what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipadapter_engine.evaluation.protocols import (
    DREAMBENCH,
    HELD_OUT,
    IP_ADAPTER,
    SEEDS,
    coco_subjects,
    dreambench_subjects,
)
from ipadapter_engine.evaluation.subjects import SubjectsRefused, folder_subjects, held_out_subjects
from tests.evaluation.conftest import a_picture


def test_coco_is_one_subject_a_picture_with_its_first_caption_and_no_prompt(coco: Path) -> None:
    subjects = coco_subjects(coco)
    assert [s.name for s in subjects] == ["000000000139.jpg", "000000000285.jpg", "000000000632.jpg"]
    assert [s.shots[0].caption for s in subjects] == ["blue cat", "red fox on the grass", "a blue fox"]
    assert {shot.prompt for s in subjects for shot in s.shots} == {""}
    assert [shot.seed for shot in subjects[0].shots] == list(range(SEEDS))
    assert [len(s.references()) for s in subjects] == [s.count for s in subjects] == [1, 1, 1]
    assert len(coco_subjects(coco, limit=2)) == 2


def test_dreambench_gives_objects_and_animals_their_own_prompts(dreambench: Path) -> None:
    backpack, cat = dreambench_subjects(dreambench)
    assert (backpack.name, backpack.words, len(backpack.references())) == ("backpack", "backpack", 3)
    assert (cat.name, cat.words, len(cat.references())) == ("cat2", "cat", 2)
    assert [s.said("backpack") for s in backpack.shots[::SEEDS]] == ["a backpack in the jungle", "a red backpack"]
    assert [s.said("sks cat") for s in cat.shots[::SEEDS]] == [
        "a sks cat wearing a red hat", "a wet sks cat", "a sks cat in the snow",
    ]  # fmt: skip
    assert (len(backpack.shots), len(cat.shots)) == (2 * SEEDS, 3 * SEEDS)
    assert [s.group for s in cat.shots] == [0] * 4 + [1] * 4 + [2] * 4
    assert dreambench_subjects(dreambench / "dataset")[0].name == "backpack"


def test_what_is_fewer_than_in_the_protocol_is_said(coco: Path, dreambench: Path) -> None:
    assert IP_ADAPTER.fewer(coco_subjects(coco)) == ["3 subjects, not 5,000"]
    assert IP_ADAPTER.fewer(coco_subjects(coco, seeds=1)) == ["3 subjects, not 5,000", "1 pictures a prompt, not 4"]
    assert DREAMBENCH.fewer(dreambench_subjects(dreambench)) == [
        "2 subjects, not 30", "2 to 3 prompts a subject, not 25",
    ]  # fmt: skip
    assert HELD_OUT.fewer(coco_subjects(coco)) == []


def test_a_whole_benchmark_is_not_fewer(tmp_path: Path) -> None:
    """DreamBench as its authors count it, written out: 30 subjects, 25 prompts in each of its two lists."""
    names = [f"thing{n}" for n in range(30)]
    for name in names:
        a_picture(1, tmp_path / name / "00.jpg")
    prompts = "\n".join(f"'a {{0}} {{1}} number {n}'.format(unique_token, class_token)," for n in range(25))
    lists = "\n".join(f"{kind} Prompts\n\nprompt_list = [\n{prompts}\n]\n" for kind in ("Object", "Live Subject"))
    classes = "\n".join(f"{name},{kind}" for name, kind in zip(names, ["toy", "dog"] * 15, strict=True))
    (tmp_path / "prompts_and_classes.txt").write_text(f"Classes\n\nsubject_name,class\n{classes}\n\nPrompts\n\n{lists}")
    subjects = dreambench_subjects(tmp_path)
    assert DREAMBENCH.fewer(subjects) == []
    assert sum(len(s.shots) for s in subjects) == 3_000
    assert DREAMBENCH.fewer(subjects[:29]) == ["29 subjects, not 30"]


@pytest.mark.parametrize(
    ("remove", "told", "fetch"),
    [("annotations/captions_val2017.json", "captions_val2017.json", "annotations_trainval2017.zip"),
     ("val2017/000000000285.jpg", "lacks 1 of 3 pictures, 000000000285.jpg first", "val2017.zip")],
)  # fmt: skip
def test_what_coco_lacks_is_named_with_what_to_fetch(coco: Path, remove: str, told: str, fetch: str) -> None:
    (coco / remove).unlink()
    with pytest.raises(SubjectsRefused) as refused:
        coco_subjects(coco)
    assert told in refused.value.message
    assert fetch in refused.value.next_step


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [{}], "annotations": []}'])
def test_captions_of_another_format_are_refused(coco: Path, text: str) -> None:
    (coco / "annotations" / "captions_val2017.json").write_text(text)
    with pytest.raises(SubjectsRefused, match="not COCO's captions"):
        coco_subjects(coco)


def test_what_dreambench_lacks_is_named(dreambench: Path, tmp_path: Path) -> None:
    with pytest.raises(SubjectsRefused, match="prompts_and_classes"):
        dreambench_subjects(tmp_path)
    for file in (dreambench / "dataset" / "cat2").iterdir():
        file.unlink()
    with pytest.raises(SubjectsRefused, match="no pictures of cat2"):
        dreambench_subjects(dreambench)
    (dreambench / "dataset" / "prompts_and_classes.txt").write_text("Classes\n\nPrompts\n")
    with pytest.raises(SubjectsRefused, match="not DreamBench's list"):
        dreambench_subjects(dreambench)


def test_a_users_folders_are_subjects_and_prompts_are_given(tmp_path: Path) -> None:
    a_picture(1, tmp_path / "red_fox" / "a.png"), a_picture(2, tmp_path / "red_fox" / "b.jpg")
    a_picture(3, tmp_path / "cat" / "a.webp")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    cat, fox = folder_subjects(tmp_path, ["a {subject} at sea"], seeds=3)
    assert (cat.name, fox.words, len(fox.references()), len(fox.shots)) == ("cat", "red fox", 2, 3)
    assert fox.shots[0].said(fox.words) == "a red fox at sea"
    with pytest.raises(SubjectsRefused, match="no prompt is given for the subject cat"):
        folder_subjects(tmp_path, [], seeds=1)


def test_metadata_names_subjects_files_and_prompts(tmp_path: Path) -> None:
    a_picture(1, tmp_path / "one.png"), a_picture(2, tmp_path / "two.png")
    lines = [
        {"subject": "bo", "file": "one.png", "prompt": "a {subject} waving"}, {"subject": "bo", "file": "two.png"},
        {"subject": "bo", "prompt": "a {subject} at sea"}, {"subject": "mo", "file": "two.png"},
    ]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    bo, mo = folder_subjects(tmp_path, ["a {subject}"], seeds=2)
    assert (len(bo.references()), len(mo.references())) == (bo.count, mo.count) == (2, 1)
    assert [s.prompt for s in bo.shots[::2]] == ["a {subject} waving", "a {subject} at sea", "a {subject}"]
    assert [s.prompt for s in mo.shots[::2]] == ["a {subject}"]


@pytest.mark.parametrize(
    ("line", "told"),
    [("nonsense", "is no JSON object"), ('{"file": "one.png"}', "is no JSON object with a subject"),
     ('{"subject": "bo", "file": "../one.png"}', "not in the folder"), ('{"subject": "bo", "file": "no.png"}', "no.png"),
     ('{"subject": "bo", "text": "x"}', "other fields"), ('["bo"]', "is no JSON object")],
)  # fmt: skip
def test_a_mistake_in_metadata_is_told_by_line(tmp_path: Path, line: str, told: str) -> None:
    a_picture(1, tmp_path / "one.png"), a_picture(2, tmp_path.parent / "one.png")
    (tmp_path / "metadata.jsonl").write_text('{"subject": "bo", "file": "one.png"}\n' + line)
    with pytest.raises(SubjectsRefused, match=told) as refused:
        folder_subjects(tmp_path, ["a {subject}"], seeds=1)
    assert "metadata.jsonl:2" in refused.value.message


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "bo").mkdir()
    (tmp_path / "bo" / "a.png").write_bytes(b"\x89PNG not")
    (subject,) = folder_subjects(tmp_path, ["a {subject}"], seeds=1)
    with pytest.raises(SubjectsRefused, match=r"a\.png is not a picture"):
        subject.references()


def test_held_out_subjects_never_say_who_they_are_and_each_picture_has_its_own_seed() -> None:
    subjects = held_out_subjects(3, 2, 2, size_px=32, references=4)
    assert [len(s.shots) for s in subjects] == [4, 4, 4]
    seeds = [shot.seed for s in subjects for shot in s.shots]
    assert len(set(seeds)) == len(seeds)
    for subject in subjects:
        assert subject.shots[0].said("sks mascot").startswith("a sks mascot, ")
        assert len(subject.references()) == subject.count == len(subject.captions or ()) == 4
        assert all("{subject}" in c for c in subject.captions or ())
