"""`onmodel evaluate`: on whom and by what is measured; then made, measured, stored and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from asset_store.repositories import evaluations
from asset_store.tables import Evaluation
from flows.configured import configured
from flows.contestants import asked_methods, contestants_of, with_plus
from flows.evaluation_order import CHARACTERS, HELD_OUT_SEEDS, EvaluationOrder, EvaluationRefused
from flows.progress import report
from flows.wiring import Store, checkpoint_paths, unet_engine
from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.evaluation import dreambooth, likeness, sheets
from ipadapter_engine.evaluation.comparison import Compared, compare
from ipadapter_engine.evaluation.measuring import Measures
from ipadapter_engine.evaluation.methods import Contestant, Making
from ipadapter_engine.evaluation.picture_cache import PictureCache
from ipadapter_engine.evaluation.protocols import PROTOCOLS, Protocol, coco_subjects, dreambench_subjects
from ipadapter_engine.evaluation.reading import JUDGE_FILE, open_judge
from ipadapter_engine.evaluation.subjects import Subject, folder_subjects, held_out_subjects
from ipadapter_engine.hashing import ModelHash, sha256_of_file
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import IDENTITY
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.training.character import CharacterTraining


def evaluate(store: Store, order: EvaluationOrder, by: str) -> dict[str, Any]:
    """Make and measure what is missing, store the table with its audit row, and return it as JSON.

    Killed and started again it goes on: pictures and trained models are kept in `order.out`. What can be refused is
    refused before the checkpoint is opened. Raises EvaluationRefused, SubjectsRefused, CheckpointRefused,
    TrainingRefused, SheetRefused, GenerationFailed.
    """
    protocol = _checked(order)
    chosen = configured(store.settings)
    settings = chosen.model_copy(update={"engine": with_plus(chosen.engine, order)})
    subjects = [] if order.images is None else _pictured(order, protocol, order.images)
    paths, made = checkpoint_paths(settings.engine).resolved(), unet_engine(settings)
    subjects = subjects or _held_out(order, made)
    contestants, left_out = contestants_of(order, made.checkpoint, paths, subjects, settings)
    measures = _measures(order, protocol, made, paths)
    making = _making(order, protocol, settings.engine.max_batch)
    out = order.out or settings.home / "evaluations" / protocol.name
    training = CharacterTraining(size_px=making.size_px)
    if order.lora_steps is not None:
        training = replace(training, steps=order.lora_steps)
    compared = compare(
        made,
        contestants,
        subjects,
        measures,
        PictureCache(out / "pictures"),
        making=making,
        train=dreambooth.SubjectTraining(made, paths, out / "characters", training, _training_progress),
        on_progress=lambda done, of: report("pictures", done, of),
    )
    told = {
        **_told(order, protocol, made, measures, subjects, making, compared),
        **_departures(protocol, making, measures, subjects),
        **_others(contestants),
        "left_out": left_out,
    }
    new = evaluations.NewEvaluation(
        protocol.name, told, _models(made, contestants, measures, paths, compared), compared.rows
    )
    with store.database.transaction() as session:
        stored = evaluations.add(session, new, by)
        session.refresh(stored)
        answer = as_json(stored) | {"made_now": compared.made, "made_before": compared.found}
    if order.sheet is not None:  # a full disk then costs the sheet and not the table
        heads = ["reference", *(c.label for c in contestants)]
        sheets.strips(compared.strips, heads).save(order.sheet)
    return answer


def as_json(stored: Evaluation) -> dict[str, Any]:
    """A stored table, with what was published for its protocol."""
    protocol = PROTOCOLS.get(stored.protocol)
    published = [] if protocol is None else [{"title": t, "figures": dict(f)} for t, f in protocol.published]
    return {
        "id": str(stored.id),
        "protocol": stored.protocol,
        "made_by": stored.made_by,
        "made_at": stored.made_at.isoformat(),
        "settings": stored.settings,
        "models": stored.models,
        "rows": stored.rows,
        "published": published,
        "published_in": protocol.source if protocol is not None and published else None,
    }


def _training_progress(step: int, steps: int) -> None:
    report("training", step, steps)


# ---------------------------------------------------------------------------- before the checkpoint is opened


def _checked(order: EvaluationOrder) -> Protocol:
    """The order's protocol; raises for whatever can be known to be wrong without opening a model."""
    if order.protocol not in PROTOCOLS:
        raise EvaluationRefused(f"there is no protocol {order.protocol}", f"Choose one of {', '.join(PROTOCOLS)}.")
    protocol = PROTOCOLS[order.protocol]
    if protocol.name == "characters" and order.images is not None:
        raise EvaluationRefused(
            "held-out characters are drawn, and pictures are given", "Leave out --images, or say --protocol images."
        )
    if protocol.name != "characters" and order.images is None:
        raise EvaluationRefused(
            f"the protocol {protocol.name} needs pictures: {protocol.title}", "Name their folder with --images."
        )
    for kind, needed, given in (("clip", protocol.clip, order.clip), ("dino", protocol.dino, order.dino)):
        if needed is not None and given is None:
            raise EvaluationRefused(
                f"the protocol {protocol.name} measures with {needed}, which is not given",
                f"Fetch its folder with safetensors weights, and name it with --{kind}.",
            )
    asked_methods(order)
    if order.clip is not None:
        likeness.check_clip(order.clip)
    if order.dino is not None:
        likeness.check_dino(order.dino)
    if order.sheet is not None:
        sheets.check_place(order.sheet)
    return protocol


def _pictured(order: EvaluationOrder, protocol: Protocol, folder: Path) -> list[Subject]:
    seeds = order.seeds or protocol.seeds
    match protocol.name:
        case "ip-adapter":
            return coco_subjects(folder, seeds=seeds, limit=order.subjects)
        case "dreambench":
            return dreambench_subjects(folder, seeds=seeds, limit=order.subjects)
    return folder_subjects(folder, order.texts, seeds)[: order.subjects]


# ---------------------------------------------------------------------------- with the checkpoint


def _held_out(order: EvaluationOrder, made: Engine) -> list[Subject]:
    if made.family.name != "studio":
        raise EvaluationRefused(
            f"held-out characters are known of the studio model only, and this is {made.family.title}",
            "Name a folder of pictures with --images.",
        )
    if order.size_px not in (None, made.family.size_px):
        raise EvaluationRefused(
            f"the judge reads pictures of {made.family.size_px} px, not {order.size_px}", "Leave out --size."
        )
    return held_out_subjects(
        order.subjects or CHARACTERS, order.prompts, order.seeds or HELD_OUT_SEEDS, size_px=2 * made.family.size_px,
        references=order.references,
    )  # fmt: skip


def _making(order: EvaluationOrder, protocol: Protocol, max_batch: int | None) -> Making:
    """The order's own values, else the protocol's, else the family's."""
    scale = protocol.scale if order.scale is None else order.scale
    return Making(
        order.heard,
        GenerationRequest.scale if scale is None else scale,
        order.steps or protocol.steps,
        protocol.guidance if order.guidance is None else order.guidance,
        order.scheduler or protocol.scheduler,
        order.size_px or protocol.size_px,
        max_batch,
        asked_steps=order.steps,
        asked_px=order.size_px,
    )


def _measures(order: EvaluationOrder, protocol: Protocol, made: Engine, paths: CheckpointPaths) -> Measures:
    device = str(made.checkpoint.unet.device)
    clip = None
    if order.clip is not None:
        clip = likeness.open_clip(order.clip, device=device)
    elif paths.encoder is not None:
        clip = likeness.of_engine(made, paths.encoder)
    dino = None if order.dino is None else likeness.open_dino(order.dino, device=device)
    judge = open_judge(paths.base / JUDGE_FILE) if protocol.name == "characters" else None
    if clip is None and dino is None and judge is None:
        raise EvaluationRefused("there is nothing to measure with", "Name a CLIPModel's folder with --clip.")
    return Measures(clip, dino, judge, protocol.clip_t_weight)


# ---------------------------------------------------------------------------- what determined the figures


def _told(
    order: EvaluationOrder, protocol: Protocol, made: Engine, measures: Measures, subjects: Sequence[Subject],
    making: Making, compared: Compared,
) -> dict[str, Any]:  # fmt: skip
    """All that determined the figures, as JSON; no paths of this machine."""
    asked = asdict(replace(order, images=None, clip=None, dino=None, plus=None, out=None, sheet=None))
    unet, clip = made.checkpoint.unet, measures.clip
    shots = {len(s.shots) for s in subjects}
    key = made.batch_key(GenerationRequest(
        "", 0, steps=making.steps, scheduler=making.scheduler, width_px=making.size_px, height_px=making.size_px
    ))  # fmt: skip
    return {
        "order": {k: list(v) if isinstance(v, tuple) else v for k, v in asked.items() if v is not None},
        "steps": key.steps,
        "guidance": made.family.guidance if making.guidance is None else making.guidance,
        "scheduler": key.scheduler,
        "size_px": key.width_px,
        "scale": making.scale,
        "heard": making.heard,
        "max_batch": compared.max_batch,
        "subjects": len(subjects),
        "subjects_sha256": compared.subjects_sha256,
        "pictures_a_subject": [min(shots), max(shots)],
        "clip": None if clip is None else clip.name,
        "clip_kind": None if clip is None else clip.kind,
        "clip_is_the_adapters_own": order.clip is None and clip is not None,
        "clip_t": None if clip is None or not clip.reads_texts else _clip_t(protocol),
        "dino": None if measures.dino is None else measures.dino.name,
        "dino_kind": None if measures.dino is None else measures.dino.kind,
        "identity_by": "judge" if measures.judge is not None else "CLIP-I",
        "device": unet.device.type,
        "dtype": str(unet.dtype).removeprefix("torch."),
        "machine": compared.machine,
        "lora": _trained_with(compared),
    }


def _others(contestants: Sequence[Contestant]) -> dict[str, Any]:
    """What determined the pictures of another engine, where one was compared; `engine` is its family."""
    told = [
        {
            "engine": c.engine.family.name,
            "size_px": c.engine.family.size_px,
            "steps": c.engine.family.steps,
            "guidance": c.engine.family.guidance,
            "scheduler": c.engine.family.scheduler,
        }
        for c in contestants
        if c.engine is not None
    ]
    return {"others": told} if told else {}


def _trained_with(compared: Compared) -> list[dict[str, Any]]:
    """The settings that models of subjects were trained with, each once, with the subjects that were."""
    told: list[dict[str, Any]] = []
    for name, trained in compared.trained.items():
        settings: Mapping[str, Any] = trained.settings
        same = next((t for t in told if t["settings"] == settings), None)
        if same is None:
            told.append({"settings": dict(settings), "subjects": [name]})
        else:
            same["subjects"].append(name)
    return told


def _departures(
    protocol: Protocol, making: Making, measures: Measures, subjects: Sequence[Subject]
) -> dict[str, Any]:  # fmt: skip
    """comparable: whether published figures may stand beside ours; None where there are none."""
    if not protocol.published:
        return {"comparable": None, "mismatched": [], "changed": []}
    kinds = (("CLIP", protocol.clip_kind, measures.clip), ("DINO", protocol.dino_kind, measures.dino))
    mismatched = [
        f"not the protocol's {what} {kind}: published figures are no comparison"
        for what, kind, used in kinds
        if kind is not None and (used is None or used.kind != kind)
    ]
    changed = protocol.fewer(subjects)
    for name in ("steps", "guidance", "scheduler", "size_px", "scale", "heard"):
        wanted, used = getattr(protocol, name), getattr(making, name)
        if wanted is not None and used != wanted:
            changed.append(f"{name.replace('_px', ' in px')} {_plain(used)}, not {_plain(wanted)}")
    return {"comparable": not (mismatched or changed), "mismatched": mismatched, "changed": changed}


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _clip_t(protocol: Protocol) -> str:
    return "cosine" if protocol.clip_t_weight is None else f"CLIPScore, {protocol.clip_t_weight:g} max(cosine, 0)"


def _models(
    made: Engine, contestants: Sequence[Contestant], measures: Measures, paths: CheckpointPaths, compared: Compared
) -> list[dict[str, str]]:
    """Every model with a part in the figures: what makes, what was trained for it, and what measures."""
    beside = [made.checkpoint.beside[f"ip-adapter {c.adapter}"] for c in contestants if c.adapter != IDENTITY]
    licence = "as the references that it was trained on"
    trained = [ModelHash("character", name, t.model.sha256, licence) for name, t in compared.trained.items()]
    own = [m for part in (measures.clip, measures.dino) if part is not None for m in part.models]
    if measures.judge is not None:
        own.append(ModelHash("judge", JUDGE_FILE, sha256_of_file(paths.base / JUDGE_FILE), made.models[0].licence))
    others = [
        replace(m, role=f"{c.engine.family.name} {m.role}") for c in contestants if c.engine for m in c.engine.models
    ]
    return [asdict(m) for m in (*made.models, *beside, *others, *trained, *own)]
