"""The engine's settings with the models of the store that they name: `models:NAME`, or the name alone."""

from __future__ import annotations

from pathlib import Path

from flows.model_facts import recognised
from flows.model_files import ModelRefused
from flows.models import ModelStore
from flows.settings import EngineSettings, Settings
from ipadapter_engine import registry
from ipadapter_engine.errors import CheckpointRefused

PREFIX = "models:"
_OWN_ENGINE = "ONMODEL_ENGINE__"
_OWN = "models.toml"  # a team's own entries of the registry


def model_store(settings: Settings) -> ModelStore:
    """The store in ONMODEL_HOME; the registry knows the team's own entries from then on."""
    registry.learn(settings.home / _OWN)
    return ModelStore(settings.home / "models")


def configured(settings: Settings) -> Settings:
    """With paths where models are named. Raises CheckpointRefused for a name that there is not, or of another kind."""
    store = model_store(settings)
    further = {n: _with_paths(store, e, f"ONMODEL_ENGINES__{n.upper()}__") for n, e in settings.engines.items()}
    return settings.model_copy(update={"engine": _with_paths(store, settings.engine, _OWN_ENGINE), "engines": further})


def _with_paths(store: ModelStore, engine: EngineSettings, prefix: str) -> EngineSettings:
    def one(variable: str, place: Path | None, kind: str | None) -> Path | None:
        return place if place is None else _path(store, prefix + variable, place, kind)

    def each(variable: str, places: dict[str, Path], kind: str) -> dict[str, Path]:
        return {n: _path(store, f"{prefix}{variable}__{n.upper()}", place, kind) for n, place in places.items()}

    vocabulary = one("TOKENIZER", engine.tokenizer, None)
    if vocabulary is not None and (vocabulary / "tokenizer").is_dir():  # of a whole base in the store
        vocabulary = vocabulary / "tokenizer"
    paths = {
        "base": one("BASE", engine.base, "base"),
        "adapter": one("ADAPTER", engine.adapter, "adapter"),
        "encoder": one("ENCODER", engine.encoder, "encoder"),
        "tokenizer": vocabulary,
        "depth_model": one("DEPTH_MODEL", engine.depth_model, None),
        "controls": each("CONTROLS", engine.controls, "controlnet"),
        "adapters": each("ADAPTERS", engine.adapters, "adapter"),
        "loras": each("LORAS", engine.loras, "lora"),
        "words": each("WORDS", engine.words, "embedding"),
    }
    return engine.model_copy(update=paths)


def model_named(store: ModelStore, place: Path) -> str | None:
    """The model of the store that a setting names: by prefix, by its name alone, or by a path into the store."""
    told = str(place)
    if told.startswith(PREFIX):
        return told.removeprefix(PREFIX)
    if place.name == told and not place.exists() and told in store.names():
        return told
    below = place.expanduser().absolute()
    return below.relative_to(store.root).parts[0] if below.is_relative_to(store.root) and below != store.root else None


def settings_naming(settings: Settings, name: str) -> list[str]:
    """The variables whose settings name a model of the store."""
    store = model_store(settings)
    further = [_places(e, f"ONMODEL_ENGINES__{n.upper()}__") for n, e in settings.engines.items()]
    places = [*_places(settings.engine, _OWN_ENGINE), *(p for of_one in further for p in of_one)]
    return [variable for variable, place in places if model_named(store, place) == name]


def described(settings: Settings) -> str:
    """What the engine's settings name, for a person; empty where they name nothing."""
    store = model_store(settings)
    told = []
    for variable, place in _places(settings.engine, _OWN_ENGINE):
        what = variable.removeprefix("ONMODEL_ENGINE__").lower().replace("__", " ")
        name = model_named(store, place)
        if name is None:
            told.append(f"{what} {place}")
            continue
        model = store.get(name)
        by = recognised(model, registry.registry())
        told.append(
            f"{what} {PREFIX}{name} ({model.licence or 'licence not known'}; known by sha256: {by == 'sha256'})"
        )
    return ", ".join(told)


def _places(engine: EngineSettings, prefix: str) -> list[tuple[str, Path]]:
    single = [("BASE", engine.base), ("ADAPTER", engine.adapter), ("ENCODER", engine.encoder),
              ("DEPTH_MODEL", engine.depth_model), ("TOKENIZER", engine.tokenizer)]  # fmt: skip
    several = [(f"CONTROLS__{n.upper()}", p) for n, p in engine.controls.items()]
    several += [(f"ADAPTERS__{n.upper()}", p) for n, p in engine.adapters.items()]
    several += [(f"LORAS__{n.upper()}", p) for n, p in engine.loras.items()]
    several += [(f"WORDS__{n.upper()}", p) for n, p in engine.words.items()]
    return [(prefix + n, p) for n, p in [*single, *several] if p is not None]


def _path(store: ModelStore, variable: str, place: Path, kind: str | None) -> Path:
    name = model_named(store, place)
    if name is None or place.exists():
        return place
    try:
        model = store.get(name)
    except ModelRefused as refused:
        raise CheckpointRefused(f"{variable} names a model {name}, which there is not", refused.next_step) from None
    if kind is not None and model.kind != kind:
        raise CheckpointRefused(
            f"{variable} names {name}, which is of kind {model.kind} and not {kind}",
            f"name a model of kind {kind}: `onmodel models list`",
        )
    return store.place_of(name)
