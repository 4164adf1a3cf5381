"""What an adapter is trained on: latents, captions and references, from a user's folder or from anything else."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ipadapter_engine.checkpoints import Checkpoint
from ipadapter_engine.training.errors import TrainingRefused
from ipadapter_engine.training.folder import Entry, read_folder
from ipadapter_engine.training.frozen import sha256_of_module
from ipadapter_engine.training.latents import Crop, check_framing, framed, latents_of, sizes_of, upright

ENCODED_AT_ONCE = 8
_SCALING = ("scaling_factor", "latents_mean", "latents_std", "shift_factor")  # of a first stage's configuration


class AdapterData(Protocol):
    """The examples of an adapter's training. Indices are of the examples, 0 to len - 1, and may repeat.

    A base or plus adapter learns what its references have in common with the pictures: references of the same
    character make an identity adapter, references in the same style that show another character a style adapter.
    Where there is an attribute `sha256`, a killed training goes on only with data of the same. Where there is a method
    `sizes(index) -> Tensor (n, 6)`, SDXL is told them (see `latents.sizes_of`); else that nothing was cropped.
    """

    def __len__(self) -> int: ...

    def latents(self, index: np.ndarray) -> Tensor:
        """(n, c, h, w) of any float type, scaled as the UNet sees them."""
        ...

    def captions(self, index: np.ndarray, rng: random.Random) -> list[str]: ...

    def references(self, index: np.ndarray, rng: random.Random) -> Tensor:
        """What the variant reads: pooled (n, embed) for base, hidden states (n, patches + 1, hidden) for plus."""
        ...


@dataclass(frozen=True, eq=False)
class Example:
    """A row of a validation sheet: a reference as picture and as its encoder sees it, and a prompt."""

    picture: Image.Image
    caption: str
    embedding: np.ndarray


@runtime_checkable
class HasExamples(Protocol):
    """Data that can be shown: needed for validation sheets."""

    def examples(self, count: int) -> Sequence[Example]: ...


@runtime_checkable
class HasSizes(Protocol):
    """Data whose pictures were scaled or cropped, which SDXL is told."""

    def sizes(self, index: np.ndarray) -> Tensor: ...


class FolderData:
    """A user's folder as AdapterData: pooled embeddings in memory, latents and hidden states read from the cache when
    they are asked for, so that large folders can be trained on.

    An entry's reference is the picture it names; else another picture of its identity; else itself.
    """

    def __init__(
        self, entries: Sequence[Entry], checkpoint: Checkpoint, *, pooled: bool, size_px: int, crop: Crop, cache: Path,
        on_picture: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        if checkpoint.encoder is None:
            raise TrainingRefused("this base has no image encoder", "name its folder with --encoder")
        check_framing(checkpoint, size_px, crop)
        self.entries, self.pooled = list(entries), pooled
        self._cache = _Cache(checkpoint, pooled=pooled, size_px=size_px, crop=crop, folder=cache)
        files = list(dict.fromkeys([e.file for e in entries] + [e.reference for e in entries if e.reference]))
        shown = {e.file for e in entries}
        self._latents, self._embeddings = self._cache.fill(files, shown, on_picture)
        self._sizes = {f: sizes_of(_size_px(f), size_px, crop) for f in shown}
        self._same: dict[str, list[Path]] = {}
        for e in entries:
            if e.identity:
                self._same.setdefault(e.identity, []).append(e.file)
        told = [[self._cache.content[e.file], e.caption, e.identity or "",
                 self._cache.content[e.reference] if e.reference else ""] for e in entries]  # fmt: skip
        self.sha256 = hashlib.sha256(repr((self._cache.kind, told)).encode()).hexdigest()

    @classmethod
    def open(
        cls, folder: Path, checkpoint: Checkpoint, *, variant: str = "base", size_px: int | None = None,
        crop: Crop = "centre", cache: Path | None = None, on_picture: Callable[[int, int], None] | None = None,
    ) -> FolderData:  # fmt: skip
        """Read a folder (docs/training.md) and encode what the cache does not hold yet.

        Raises FolderInvalid with all that is wrong. `cache` is `folder/.onmodel` unless given.
        """
        return cls(
            read_folder(folder), checkpoint, pooled=variant == "base", size_px=size_px or checkpoint.family.size_px,
            crop=crop, cache=cache or folder / ".onmodel", on_picture=on_picture,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.entries)

    def latents(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(np.stack([np.load(self._latents[self.entries[i].file]) for i in index]))

    def sizes(self, index: np.ndarray) -> Tensor:
        return torch.tensor([self._sizes[self.entries[i].file] for i in index])

    def captions(self, index: np.ndarray, rng: random.Random) -> list[str]:
        return [self.entries[i].caption for i in index]

    def references(self, index: np.ndarray, rng: random.Random) -> Tensor:
        found = [self._embedding(self._reference_of(self.entries[i], rng)) for i in index]
        return torch.from_numpy(np.stack(found)).float()

    def examples(self, count: int) -> list[Example]:
        """The first entries, each with the reference that it would have in training."""
        rng, made = random.Random(0), []
        for e in self.entries[:count]:
            reference = self._reference_of(e, rng)
            with Image.open(reference) as picture:
                made.append(Example(upright(picture), e.caption, self._embedding(reference).astype(np.float32)))
        return made

    def _reference_of(self, entry: Entry, rng: random.Random) -> Path:
        if entry.reference is not None:
            return entry.reference
        group = self._same.get(entry.identity or "", [])
        if len(group) < 2:
            return entry.file
        while (other := rng.choice(group)) == entry.file:  # groups may be large: no list of the others is made
            pass
        return other

    def _embedding(self, file: Path) -> np.ndarray:
        held = self._embeddings[file]
        return held if isinstance(held, np.ndarray) else np.load(held)


class _Cache:
    """Latents and embeddings on disk, named by the picture's bytes and by all that made them."""

    def __init__(self, checkpoint: Checkpoint, *, pooled: bool, size_px: int, crop: Crop, folder: Path) -> None:
        assert checkpoint.encoder is not None
        self.checkpoint, self.encoder, self.pooled = checkpoint, checkpoint.encoder, pooled
        self.size_px, self.crop, self.folder = size_px, crop, folder
        self.content: dict[Path, str] = {}
        scaling = {k: v for k, v in sorted(dict(checkpoint.vae.config).items()) if k in _SCALING}
        vae = hashlib.sha256(f"{sha256_of_module(checkpoint.vae)} {scaling}".encode()).hexdigest()
        self.kind = (vae[:16], size_px, crop, self.encoder.sha256[:16], "pooled" if pooled else "hidden")

    def fill(
        self, files: list[Path], shown: set[Path], on_picture: Callable[[int, int], None] | None
    ) -> tuple[dict[Path, Path], dict[Path, np.ndarray | Path]]:
        """Where the latents of the `shown` files are; embeddings of all, pooled ones in memory, others by their file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            self.content[file] = hashlib.sha256(file.read_bytes()).hexdigest()
        latent, embedding = ({f: self._name(f, part) for f in files} for part in ("latents", "embedding"))
        todo = [f for f in files if not embedding[f].exists() or (f in shown and not latent[f].exists())]
        for done, batch in _chunks(todo, ENCODED_AT_ONCE):
            opened = []
            for file in batch:
                with Image.open(file) as picture:
                    opened.append(upright(picture))
            for file, encoded in zip(batch, self.encoder.encode(opened, hidden=not self.pooled), strict=True):
                _write(embedding[file], encoded.pooled if encoded.hidden is None else encoded.hidden)
            squares = {f: framed(p, self.size_px, self.crop) for f, p in zip(batch, opened, strict=True) if f in shown}
            if squares:
                for file, made in zip(squares, latents_of(self.checkpoint, list(squares.values())), strict=True):
                    _write(latent[file], made.numpy())
            if on_picture is not None:
                on_picture(done, len(todo))
        return latent, {f: np.load(embedding[f]) if self.pooled else embedding[f] for f in files}

    def _name(self, file: Path, part: str) -> Path:
        made_by = self.kind[:3] if part == "latents" else self.kind[3:]
        return self.folder / f"{self.content[file][:32]}.{part}.{'.'.join(map(str, made_by))}.npy"


def _size_px(file: Path) -> tuple[int, int]:
    """Width and height as `upright` shows it; its pixels are not read."""
    with Image.open(file) as picture:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (picture.height, picture.width) if turned else picture.size


def _write(target: Path, array: np.ndarray) -> None:
    """Half precision, and the whole file or none of it."""
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, array.astype(np.float16))
    os.replace(partial, target)


def _chunks(files: list[Path], size: int) -> Iterator[tuple[int, list[Path]]]:
    """(files up to and with this chunk, the chunk)"""
    for start in range(0, len(files), size):
        chunk = files[start : start + size]
        yield start + len(chunk), chunk
