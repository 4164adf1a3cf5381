"""Which methods an evaluation can compare with the loaded checkpoint, from which files, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from flows.evaluation_order import EvaluationOrder, EvaluationRefused
from flows.settings import EngineSettings, Settings
from flows.wiring import engine
from ipadapter_engine.checkpoints import EMBEDDED, Checkpoint, CheckpointPaths
from ipadapter_engine.engines import PictureEngine
from ipadapter_engine.evaluation import dreambooth
from ipadapter_engine.evaluation.methods import Contestant, Method, disk_bytes, folder_bytes, weights_bytes
from ipadapter_engine.evaluation.subjects import Subject
from ipadapter_engine.prompts import IDENTITY
from ipadapter_engine.requests import GenerationRequest

PLUS = "plus"
PLUS_FILE = "ip_adapter_plus.safetensors"


def asked_methods(order: EvaluationOrder) -> list[Method]:
    """Those asked for by name; empty asks for all that can be measured."""
    known = {m.value: m for m in Method}
    if unknown := [name for name in order.methods if name not in known]:
        raise EvaluationRefused(f"there is no method {unknown[0]}", f"Choose of {', '.join(known)}.")
    return [known[name] for name in order.methods]


def with_plus(settings: EngineSettings, order: EvaluationOrder) -> EngineSettings:
    """With a plus adapter beside the identity one: the order's, else the settings', else the base's own, if any."""
    if order.plus is not None and not order.plus.exists():
        raise EvaluationRefused(f"there is no adapter file at {order.plus}", "Check the path given with --plus.")
    own = (settings.base or EMBEDDED) / PLUS_FILE
    file = order.plus or settings.adapters.get(PLUS) or (own if own.exists() else None)
    if file is None:
        return settings
    return settings.model_copy(update={"adapters": {**settings.adapters, PLUS: file}})


def contestants_of(
    order: EvaluationOrder,
    checkpoint: Checkpoint,
    paths: CheckpointPaths,
    subjects: Sequence[Subject],
    settings: Settings,
) -> tuple[list[Contestant], list[dict[str, str]]]:
    """The methods that run, and those that cannot, with why. A method asked for by name must be able to."""
    asked = asked_methods(order)
    files = {IDENTITY: paths.adapter, PLUS: paths.adapters.get(PLUS)}
    contestants: list[Contestant] = []
    left_out = []
    usual = [m for m in Method if m is not Method.NATIVE or settings.engines]
    for method in asked or usual:
        if method is Method.NATIVE:
            name, why = another_engine(order, settings)
            adapter = IDENTITY
        else:
            adapter, why = _adapter_of(method, checkpoint)
        why = why or _why_not(method, order, subjects)
        if why and asked:
            raise EvaluationRefused(f"{method.label} cannot be measured here: {why}", "Leave it out of --methods.")
        if why:
            left_out.append({"method": method.value, "title": method.label, "why": why})
            continue
        if method is Method.NATIVE:
            base, made = settings.engines[name].base or EMBEDDED, engine(settings, name)
            _check_can(made, order)
            contestants.append(Contestant(method, adapter, folder_bytes(base), made))
            continue
        shared = disk_bytes(files[adapter]) + weights_bytes(paths.encoder) if method.hears else 0
        contestants.append(Contestant(method, adapter, shared))
    if not contestants:
        raise EvaluationRefused("no method can be measured here", "Load an adapter with ONMODEL_ENGINE__ADAPTER.")
    fewest = min(subjects, key=lambda s: s.count)
    if order.heard > fewest.count and any(c.method.hears for c in contestants):
        raise EvaluationRefused(
            f"an adapter cannot hear {order.heard} references of {fewest.name}, which has {fewest.count}",
            f"Give --heard {fewest.count} or fewer.",
        )
    return contestants, left_out


def _check_can(made: PictureEngine, order: EvaluationOrder) -> None:
    """RequestRefused, before any picture is made, where another engine cannot make what is ordered."""
    seen = made.look_at(Image.new("RGB", (64, 64)))
    made.batch_key(
        GenerationRequest(
            "", 0, (seen,) * order.heard, width_px=order.size_px, height_px=order.size_px, steps=order.steps
        )
    )


def another_engine(order: EvaluationOrder, settings: Settings) -> tuple[str, str]:
    """The name of the engine that the method `native` compares, and why there is none, empty where there is one."""
    names = sorted(settings.engines)
    if order.engine is not None:
        return order.engine, "" if order.engine in names else f"no engine is called {order.engine}"
    if len(names) == 1:
        return names[0], ""
    return "", f"name one of {', '.join(names)} with --engine" if names else "set ONMODEL_ENGINES__NAME__BASE"


def _adapter_of(method: Method, checkpoint: Checkpoint) -> tuple[str, str]:
    """The name of the adapter that hears in a method, and why none does, empty where one does."""
    own = checkpoint.adapter
    if method is Method.ADAPTER and own is not None and own.variant != "base":
        return IDENTITY, f"the identity adapter is a {own.variant} adapter; ask for {Method.PLUS}"
    if method is Method.PLUS and not (own is not None and own.variant == PLUS):
        return PLUS, "" if PLUS in checkpoint.adapters else f"there is no {PLUS_FILE} in the base; name one with --plus"
    if method.hears and own is None:
        return IDENTITY, "no adapter is loaded; set ONMODEL_ENGINE__ADAPTER"
    return IDENTITY, ""


def _why_not(method: Method, order: EvaluationOrder, subjects: Sequence[Subject]) -> str:
    """Why a method cannot be measured on these subjects; empty where it can."""
    if method.trained:
        if order.protocol == "ip-adapter":
            return "a LoRA learns from 3 pictures or more, and here every subject is one"
        fewest = min(s.count for s in subjects)
        if not dreambooth.can_train(fewest):
            return f"a LoRA learns from 3 pictures or more, and a subject has {fewest}"
    if order.protocol == "ip-adapter" and not method.hears:
        return "its prompts are empty: the picture is all that is said"
    if order.protocol == "ip-adapter" and method is Method.NATIVE:
        return "its prompts are empty, and another engine is told by them what to make of a picture"
    return ""
