"""Opens the store and the engine that the settings name, once a process."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asset_store.blobs import BlobStore, open_blobs
from asset_store.blobs.s3_client import is_s3_url, parse_s3_url
from asset_store.database import Database, open_database
from asset_store.errors import NotFound, PlaceInvalid
from asset_store.library import LibrarySource, open_source
from flows.configured import configured
from flows.settings import EngineSettings, Settings, load_settings

if TYPE_CHECKING:
    from ipadapter_engine.checkpoints import CheckpointPaths
    from ipadapter_engine.encoder import ImageEncoder
    from ipadapter_engine.engines import PictureEngine
    from ipadapter_engine.pipeline import Engine
    from ipadapter_engine.warm import WarmEngines


@dataclass(frozen=True)
class Store:
    """The database, migrated, and the blobs."""

    database: Database
    blobs: BlobStore
    settings: Settings


_lock = threading.Lock()
_store: Store | None = None
_users = 0


@contextmanager
def open_store(settings: Settings | None = None) -> Iterator[Store]:
    """The process's store; the last one to leave closes it. Nested calls share it."""
    global _store, _users
    with _lock:
        if _store is None:
            chosen = settings or load_settings()
            chosen.home.mkdir(parents=True, exist_ok=True)
            database = open_database(chosen.database.url, chosen.home)
            try:
                database.migrate()
                blobs = open_blobs(chosen.blobs_url, endpoint_url=chosen.s3.endpoint_url, region=chosen.s3.region)
            except BaseException:
                database.close()
                raise
            _store = Store(database, blobs, chosen)
        _users += 1
        store = _store
    try:
        yield store
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _store is not None:
                _store.database.close()
                _store = None


def address_of(url: str) -> str:
    """One form for each place: s3://bucket/prefix without a slash at the end, a folder by its full path.

    PlaceInvalid for any other scheme, which would else be taken for a folder's name.
    """
    if is_s3_url(url):
        return str(parse_s3_url(url))
    if "://" in url:
        raise PlaceInvalid(f"{url} is neither a folder nor in S3", "Give a folder or s3://bucket/prefix.")
    return str(Path(url).expanduser().resolve())


def open_library(settings: Settings, url: str) -> LibrarySource:
    return open_source(url, endpoint_url=settings.s3.endpoint_url, region=settings.s3.region)


_engine_lock = threading.Lock()


def engine(settings: Settings, name: str = "") -> PictureEngine:
    """The process's engine, warm after the first call, or the further one of that name. Raises CheckpointRefused, and
    NotFound where no engine is called so."""
    if name and name not in settings.engines:
        known = ", ".join(sorted(settings.engines)) or "none"
        raise NotFound("engine", name, f"Set ONMODEL_ENGINES__{name.upper()}__BASE, or name another; set are: {known}.")
    with _engine_lock:
        chosen = configured(settings)
        own = chosen.engine.model_dump_json()
        return _further(name, chosen.engines[name].model_dump_json(), own) if name else _engine(own)


@functools.lru_cache(maxsize=1)
def _engine(settings_json: str) -> PictureEngine:
    return _opened(EngineSettings.model_validate_json(settings_json), None)


def _further(name: str, settings_json: str, own_json: str) -> PictureEngine:
    """It sees with what the library was read with: its pictures are checked as all others. As many stay open as fit."""
    from ipadapter_engine.errors import CheckpointRefused

    def opened() -> PictureEngine:
        settings, encoder = EngineSettings.model_validate_json(settings_json), _engine(own_json).encoder
        made = _opened(settings, encoder)
        if made.encoder.sha256 != encoder.sha256:
            raise CheckpointRefused(
                f"the engine {name} sees with {made.encoder.name}, and libraries are read with {encoder.name}",
                f"set ONMODEL_ENGINES__{name.upper()}__ENCODER to the folder of ONMODEL_ENGINE__ENCODER",
            )
        return made

    return _warm(own_json).get((name, settings_json), opened)


@functools.lru_cache(maxsize=1)
def _warm(own_json: str) -> WarmEngines:
    """Of the memory that the process's own engine leaves."""
    from ipadapter_engine.warm import WarmEngines, limit_of, weight_bytes

    own = _engine(own_json)
    return WarmEngines(limit_of(_device(EngineSettings.model_validate_json(own_json))) - weight_bytes(own))


def _device(settings: EngineSettings) -> str:
    import torch

    return settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _opened(settings: EngineSettings, encoder: ImageEncoder | None) -> PictureEngine:
    import torch

    from ipadapter_engine.acceleration import Acceleration
    from ipadapter_engine.engines import open_engine

    device = _device(settings)
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if settings.dtype == "auto" and device.startswith("cuda") and settings.base is not None:
        dtype = torch.bfloat16
    how = Acceleration(compiled=settings.compiled, attention=settings.attention, offload=settings.offload)
    return open_engine(checkpoint_paths(settings), encoder=encoder, device=device, dtype=dtype, acceleration=how)


def checkpoint_paths(settings: EngineSettings) -> CheckpointPaths:
    """Every file and folder that the settings name."""
    from ipadapter_engine.checkpoints import EMBEDDED, CheckpointPaths

    return CheckpointPaths(
        settings.base or EMBEDDED, settings.adapter, settings.encoder, settings.controls, settings.adapters,
        settings.words, settings.tokenizer, settings.loras,
    )  # fmt: skip


def unet_engine(settings: Settings) -> Engine:
    """The process's engine, for what trains its UNet. Raises RequestRefused where the base has none."""
    from ipadapter_engine.errors import RequestRefused
    from ipadapter_engine.pipeline import Engine

    made = engine(settings)
    if not isinstance(made, Engine):
        raise RequestRefused(
            f"{made.family.title} is not trained here",
            "set ONMODEL_ENGINE__BASE to a Stable Diffusion 1.5 or SDXL base",
        )
    return made


def os_user() -> str:
    """Who sits at the terminal: the actor of what the CLI does, unless told otherwise."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
