"""Published protocols as presets: the dataset's own layout in, its subjects out, the published figures beside.

Nothing is downloaded. What is missing is said with the name of the file to fetch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipadapter_engine.evaluation.subjects import SUBJECT, Shot, Subject, SubjectsRefused, opened, pictures_in, shots_of

COCO_IMAGES, COCO_CAPTIONS, COCO_COUNT = "val2017", "captions_val2017.json", 5000
DREAMBENCH_PROMPTS, DREAMBENCH_COUNT, DREAMBENCH_PROMPT_COUNT = "prompts_and_classes.txt", 30, 25
SEEDS = 4  # pictures a prompt, in both
LIVE = ("cat", "dog")  # the classes that DreamBench's second list of prompts is for
# CLIPScore is 2.5 max(cos, 0) (Hessel et al., 2021, arXiv:2104.08718, who put "A photo depicts" before each caption;
# the captions stand as they are here)
CLIPSCORE_WEIGHT = 2.5


@dataclass(frozen=True)
class Protocol:
    """A set-up of figures that were published, or one of our own. None leaves open what nobody laid down.

    title and source are shown with the table; clip, dino: what must be given to measure with; clip_kind, dino_kind: as
    `likeness.kind_of` calls them. clip_t_weight: CLIP-T is CLIPScore with this weight, else the cosine.
    steps, guidance, scheduler, size_px, scale: of the pictures; heard: references that an adapter hears.
    subjects, prompts, seeds: how many there are.
    """

    name: str
    title: str
    source: str
    clip: str | None = None
    dino: str | None = None
    clip_kind: str | None = None
    dino_kind: str | None = None
    clip_t_weight: float | None = None
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    size_px: int | None = None
    scale: float | None = None
    heard: int | None = None
    subjects: int | None = None
    prompts: int | None = None
    seeds: int = SEEDS
    published: tuple[tuple[str, Mapping[str, float]], ...] = ()

    def fewer(self, subjects: Sequence[Subject]) -> list[str]:
        """In what `subjects` are not as many as there are in the protocol; empty where it lays nothing down."""
        if not self.published or not subjects:
            return []
        prompts = {len({shot.group for shot in s.shots}) for s in subjects}
        seeds = {len(s.shots) // len({shot.group for shot in s.shots}) for s in subjects}
        counted = (
            ("subjects", {len(subjects)}, self.subjects),
            ("prompts a subject", prompts, self.prompts),
            ("pictures a prompt", seeds, self.seeds),
        )
        return [
            f"{_span(found)} {what}, not {wanted:,}"
            for what, found, wanted in counted
            if wanted is not None and found != {wanted}
        ]


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _paper(clip_t: float, clip_i: float) -> dict[str, float]:
    return {"clip_t": clip_t, "clip_i": clip_i}


def _bench(dino: float, clip_i: float, clip_t: float | None = None) -> dict[str, float]:
    return {"dino": dino, "clip_i": clip_i} | ({} if clip_t is None else {"clip_t": clip_t})


HELD_OUT = Protocol("characters", "Held-out characters of the studio model", "docs/fidelity.md")
IMAGES = Protocol("images", "A folder of pictures", "docs/fidelity.md")
IP_ADAPTER = Protocol(
    "ip-adapter",
    "COCO val2017, each picture its own prompt",
    "Ye et al., 2023, arXiv:2308.06721, a selection of table 1",
    clip="CLIP ViT-L/14",
    clip_kind="ViT-L/14",
    clip_t_weight=CLIPSCORE_WEIGHT,
    steps=50,
    guidance=7.5,
    scheduler="ddim",
    size_px=512,
    scale=1.0,
    heard=1,
    subjects=COCO_COUNT,
    prompts=1,
    published=(
        ("IP-Adapter, SD1.5, 22 M", _paper(0.588, 0.828)),
        ("ControlNet Shuffle, 361 M", _paper(0.421, 0.616)),
        ("T2I-Adapter style, 39 M", _paper(0.485, 0.648)),
        ("Uni-ControlNet, 47 M", _paper(0.506, 0.736)),
        ("SD unCLIP, 870 M", _paper(0.584, 0.810)),
        ("Open unCLIP, 893 M", _paper(0.608, 0.858)),
    ),
)
DREAMBENCH = Protocol(
    "dreambench",
    "DreamBench, 30 subjects and 25 prompts",
    "Ruiz et al., 2022, arXiv:2208.12242, sec. 4; IP-Adapter as in DreamCache, arXiv:2411.17786, table 2",
    clip="CLIP",
    dino="DINO ViT-S/16",
    dino_kind="ViT-S/16",
    heard=1,
    subjects=DREAMBENCH_COUNT,
    prompts=DREAMBENCH_PROMPT_COUNT,
    published=(
        ("real pictures", _bench(0.774, 0.885)),
        ("DreamBooth, SD", _bench(0.668, 0.803, 0.305)),
        ("IP-Adapter, SD1.5, one reference", _bench(0.667, 0.813, 0.289)),
    ),
)
PROTOCOLS = {p.name: p for p in (HELD_OUT, IMAGES, IP_ADAPTER, DREAMBENCH)}


def coco_subjects(folder: Path, *, seeds: int = SEEDS, limit: int | None = None) -> list[Subject]:
    """COCO val2017: every picture is the image prompt of `seeds` pictures, without words; sec. 4.2 of the paper.

    Each comes with its first caption, which CLIP-T compares with. `folder` holds `val2017/` and
    `annotations/captions_val2017.json`. Raises SubjectsRefused, naming what is missing.
    """
    places = [folder / "annotations" / COCO_CAPTIONS, folder / COCO_CAPTIONS]
    file = next((p for p in places if p.exists()), None)
    if file is None:
        raise SubjectsRefused(
            f"{folder} has no annotations/{COCO_CAPTIONS}",
            "fetch annotations_trainval2017.zip from the COCO site (cocodataset.org, Download) and unpack it there",
        )
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        names = {int(i["id"]): str(i["file_name"]) for i in told["images"]}
        captions: dict[int, str] = {}
        for note in sorted(told["annotations"], key=lambda a: int(a["id"])):
            captions.setdefault(int(note["image_id"]), " ".join(str(note["caption"]).split()))
    except (ValueError, KeyError, TypeError) as error:
        raise SubjectsRefused(f"{file} is not COCO's captions: {error!r}", "unpack the annotations again") from None
    known = sorted(i for i in names if i in captions)[:limit]
    missing = [names[i] for i in known if not (folder / COCO_IMAGES / names[i]).is_file()]
    if missing:
        raise SubjectsRefused(
            f"{folder / COCO_IMAGES} lacks {len(missing)} of {len(known)} pictures, {missing[0]} first",
            "fetch val2017.zip from the COCO site (cocodataset.org, Download) and unpack it there",
        )
    return [
        Subject(
            names[i],
            "picture",
            opened([folder / COCO_IMAGES / names[i]]),
            1,
            tuple(Shot("", seed, 0, caption=captions[i]) for seed in range(seeds)),
        )
        for i in known
    ]


def dreambench_subjects(folder: Path, *, seeds: int = SEEDS, limit: int | None = None) -> list[Subject]:
    """DreamBench: a folder a subject, and prompts_and_classes.txt as its authors publish them (google/dreambooth).

    `folder` is their repository or its `dataset`. The first picture of a subject is what an adapter hears, all of
    them are what likeness is measured to. Raises SubjectsRefused, naming what is missing.
    """
    root = folder / "dataset" if (folder / "dataset" / DREAMBENCH_PROMPTS).exists() else folder
    file = root / DREAMBENCH_PROMPTS
    if not file.exists():
        raise SubjectsRefused(
            f"{folder} has no {DREAMBENCH_PROMPTS}",
            "fetch the repository google/dreambooth and name its folder dataset",
        )
    classes, objects, live = _read_dreambench(file)
    subjects = []
    for name, words in list(classes.items())[:limit]:
        files = pictures_in(root / name) if (root / name).is_dir() else []
        if not files:
            raise SubjectsRefused(
                f"{root} has no pictures of {name}", f"fetch dataset/{name} of the repository google/dreambooth"
            )
        subjects.append(
            Subject(name, words, opened(files), len(files), shots_of(live if words in LIVE else objects, seeds))
        )
    return subjects


def _read_dreambench(file: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Class words by subject, prompts of objects, prompts of live subjects."""
    text = file.read_text(encoding="utf-8")
    head, _, tail = text.partition("Prompts")
    classes = dict(re.findall(r"^([^,\n]+),([^,\n]+)$", head, re.M))
    classes.pop("subject_name", None)
    lists = [
        [p.replace("{0} {1}", SUBJECT) for p in re.findall(r"^['\"](.+)['\"]\.format\(", part, re.M)]
        for part in tail.split("prompt_list")[1:]
    ]
    if not classes or len(lists) != 2 or not all(lists) or not all(SUBJECT in p for part in lists for p in part):
        raise SubjectsRefused(
            f"{file} is not DreamBench's list of classes and prompts", "use the file as google/dreambooth publishes it"
        )
    return classes, lists[0], lists[1]
