"""Which references of a library speak for a character in a shot, and why each one does or does not.

Three steps over arrays, none of which knows where they come from: near-duplicates and outliers are dropped, what is left
is ranked. Then the same for a character of the database.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from asset_store.checks import perceptual_hash
from asset_store.errors import NotFound
from asset_store.repositories import libraries
from asset_store.tables import Character, Reference
from flows.loading import picture_of
from flows.text_tower import text_tower
from flows.wiring import Store, engine, open_store

SAME_BITS = 4  # perceptual hashes of 256 bits this near are of one picture: another size, another compression
CROP_BITS, CROP_COSINE = 16, 0.9975  # a narrow crop: it changes the hash more, and the embedding hardly
LIKELY_COSINE = 0.9  # pictures less alike than this are never near-duplicates: their hashes are not computed
OUTLIER_SPREADS = 3.5  # of a robust standard deviation (Iglewicz and Hoaglin, 1993, use 3.5)
LEAST_SPREAD = 0.05  # a tight library does not lose its side view
MAD_TO_SIGMA = 1.4826  # the median absolute deviation of a normal distribution is its sigma / 1.4826
ENOUGH_FOR_OUTLIERS = 4  # of three one cannot say which is the odd one


@dataclass(frozen=True)
class Choice:
    """What was said of one reference. `rank` counts from 1 among the kept ones; None where it was dropped.

    typicality: cosine to the centre of the kept references; fitness: cosine to the prompt, None where nothing that is
    loaded can tell.
    """

    key: str
    sha256: str
    rank: int | None
    typicality: float | None
    fitness: float | None
    reason: str

    @property
    def kept(self) -> bool:
        return self.rank is not None


# ---------------------------------------------------------------------------- over arrays


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, d) at length one, float64; a row of zeros stays as it is."""
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def is_same(bits: int, cosine: float) -> bool:
    """Whether two pictures show the same, by the bits their hashes differ in and their embeddings' cosine."""
    return bits <= SAME_BITS or (bits <= CROP_BITS and cosine >= CROP_COSINE)


def near_duplicates(
    vectors: np.ndarray, better: Sequence[int], hash_of: Callable[[int], int]
) -> dict[int, tuple[int, str]]:
    """Row of each near-duplicate -> (the kept row that shows the same, in what they are alike).

    vectors (n, d); better: all rows, the one to keep first; hash_of(row): its perceptual hash as a number of 256 bits,
    asked for only where embeddings are alike. No two kept rows are near-duplicates of each other.
    """
    alike = unit(vectors) @ unit(vectors).T
    kept: list[int] = []
    dropped: dict[int, tuple[int, str]] = {}
    for row in better:
        for other in kept:
            cosine = float(alike[row, other])
            if cosine < LIKELY_COSINE:
                continue
            bits = (hash_of(row) ^ hash_of(other)).bit_count()
            if is_same(bits, cosine):
                dropped[row] = (other, f"{bits} of 256 bits apart, likeness {cosine:.3f}")
                break
        else:
            kept.append(row)
    return dropped


def outliers(vectors: np.ndarray) -> dict[int, tuple[float, float]]:
    """Row of each outlier -> (its distance to the centre, the limit).

    The centre is the median of the unit vectors, which outliers cannot pull away; the distance is 1 - cosine; the limit
    lies OUTLIER_SPREADS robust deviations over the median distance. At least half of the rows always stay.
    """
    rows = unit(vectors)
    if len(rows) < ENOUGH_FOR_OUTLIERS:
        return {}
    centre = unit(np.median(rows, axis=0))
    distances = 1 - rows @ centre
    middle = float(np.median(distances))
    spread = max(MAD_TO_SIGMA * float(np.median(np.abs(distances - middle))), LEAST_SPREAD)
    limit = middle + OUTLIER_SPREADS * spread
    return {int(i): (float(distances[i]), limit) for i in np.flatnonzero(distances > limit)}


def ranked(vectors: np.ndarray, prompt: np.ndarray | None) -> tuple[list[int], np.ndarray, np.ndarray | None]:
    """Rows from the best to the last, with each row's typicality and fitness (n,).

    vectors (n, d); prompt (d,) is the shot's text as the encoder's own text tower says it, or None. With a prompt the
    two count alike, each in its own standard deviations; equal rows stay in their order.
    """
    rows = unit(vectors)
    typicality = rows @ unit(rows.mean(axis=0))
    if prompt is None:
        return [int(i) for i in np.argsort(-typicality, kind="stable")], typicality, None
    fitness = rows @ unit(prompt)
    score = _standard(typicality) + _standard(fitness)
    return [int(i) for i in np.argsort(-score, kind="stable")], typicality, fitness


def _standard(values: np.ndarray) -> np.ndarray:
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 1e-6 else np.zeros_like(values)


@dataclass(frozen=True)
class RankedReference:
    """A reference as the ranking sees it: embedding (d,), size, weight, and its perceptual hash when asked for."""

    key: str
    sha256: str
    embedding: np.ndarray
    pixels: int
    weight: float
    hash: Callable[[], int] = field(repr=False)


@dataclass(frozen=True)
class Sifted:
    """References without what no prompt would bring back: near-duplicates (row -> the kept row, in what they are alike)
    and outliers (row -> distance, limit). Rows count in `order`."""

    order: tuple[RankedReference, ...]
    twins: Mapping[int, tuple[int, str]]
    odd: Mapping[int, tuple[float, float]]

    @property
    def kept(self) -> list[int]:
        return [i for i in range(len(self.order)) if i not in self.twins and i not in self.odd]


def sift(references: Sequence[RankedReference]) -> Sifted:
    """Drop near-duplicates, then outliers. Never drops all."""
    order = tuple(sorted(references, key=lambda c: (c.key, c.sha256)))
    if not order:
        return Sifted((), {}, {})
    vectors = np.stack([c.embedding for c in order])
    better = sorted(range(len(order)), key=lambda i: (-order[i].weight, -order[i].pixels, i))
    twins = near_duplicates(vectors, better, lambda i: order[i].hash())
    single = [i for i in range(len(order)) if i not in twins]
    return Sifted(order, twins, {single[i]: told for i, told in outliers(vectors[single]).items()})


def choose(references: Sequence[RankedReference] | Sifted, prompt: np.ndarray | None = None) -> list[Choice]:
    """What is to be said of every reference: the kept ones by rank, then the dropped ones. Never drops all."""
    sifted = references if isinstance(references, Sifted) else sift(references)
    order, kept = sifted.order, sifted.kept
    if not order:
        return []
    rows, typicality, fitness = ranked(np.stack([order[i].embedding for i in kept]), prompt)
    out = []
    for rank, row in enumerate(rows, start=1):
        c, fit = order[kept[row]], None if fitness is None else round(float(fitness[row]), 4)
        told = f"{rank} of {len(kept)}: typicality {typicality[row]:.2f}"
        told += "" if fit is None else f", fits the prompt {fit:.2f}"
        out.append(Choice(c.key, c.sha256, rank, round(float(typicality[row]), 4), fit, told))
    for i, (distance, limit) in sifted.odd.items():
        told = f"outlier: {distance:.2f} from the centre of the others, the limit is {limit:.2f}"
        out.append(Choice(order[i].key, order[i].sha256, None, None, None, told))
    for i, (other, alike) in sorted(sifted.twins.items()):
        told = f"near-duplicate of {order[other].key} ({alike}), which {_why_better(order[other], order[i])}"
        out.append(Choice(order[i].key, order[i].sha256, None, None, None, told))
    return out


def _why_better(kept: RankedReference, dropped: RankedReference) -> str:
    if kept.weight != dropped.weight:
        return f"has more weight ({kept.weight:g}, not {dropped.weight:g})"
    return "is larger" if kept.pixels > dropped.pixels else "comes first"


# ---------------------------------------------------------------------------- of the library


@dataclass(frozen=True)
class Ranking:
    """A character's references for a prompt. `told` says by what they were ranked."""

    character: str
    brand: str
    prompt: str
    choices: tuple[Choice, ...]
    told: str

    @property
    def kept(self) -> tuple[Choice, ...]:
        return tuple(c for c in self.choices if c.kept)

    def as_json(self) -> dict[str, Any]:
        shown = [{**asdict(c), "kept": c.kept} for c in self.choices]
        return {"character": self.character, "brand": self.brand, "prompt": self.prompt, "ranked_by": self.told,
                "references": shown}  # fmt: skip


@dataclass(frozen=True)
class CharacterReferences:
    """A character's usable identity references, each picture once, as one encoder sees them. `rows`: by sha256.

    Pictures are read from the blob store to compare them when they are first sifted, which needs no transaction.
    """

    character: str
    brand: str
    references: tuple[RankedReference, ...]
    rows: Mapping[str, Reference]

    @functools.cached_property
    def sifted(self) -> Sifted:
        return sift(self.references)

    def rank(self, prompt: str, text: np.ndarray | None) -> Ranking:
        """text (d,): the prompt in the encoder's space, or None where nothing reads it."""
        told = "typicality and fitness to the prompt"
        if text is None:
            told = "typicality"
            told += " alone: the encoder has no text tower to compare a prompt with" if prompt else ""
        return Ranking(self.character, self.brand, prompt, tuple(choose(self.sifted, text)), told)


def find_references(
    session: Session, store: Store, character: Character, encoder: str, today: date
) -> CharacterReferences:
    """Those of a character whose embedding by the encoder of this sha256 is there. NotFound where none is usable."""
    usable = libraries.usable_references(session, character.id, today)
    vectors = libraries.embeddings_of(session, {r.sha256 for r in usable}, encoder)
    rows = {r.sha256: r for r in reversed(usable) if r.sha256 in vectors}
    if not rows:
        raise NotFound(
            "usable identity reference of", character.name, "Ingest its library with the encoder of today's settings."
        )
    seen = tuple(ranked_reference(store, r, vectors[r.sha256].pooled) for r in rows.values())
    return CharacterReferences(character.name, character.brand.name, seen, rows)


def ranked_reference(store: Store, row: Reference, pooled: Sequence[float]) -> RankedReference:
    """A row with its embedding; its picture is read only when its hash is asked for."""
    vector, pixels = np.asarray(pooled, dtype=np.float32), row.width_px * row.height_px
    return RankedReference(row.key, row.sha256, vector, pixels, row.weight, lambda: _hash_of(store, row.sha256))


_hashes: OrderedDict[str, int] = OrderedDict()  # of pictures by their sha256, which never change
_HASHES_MOST = 20_000
_hashes_lock = threading.Lock()


def _hash_of(store: Store, sha256: str) -> int:
    with _hashes_lock:
        known = _hashes.get(sha256)
    if known is None:
        known = int(perceptual_hash(picture_of(store, sha256)), 16)
        with _hashes_lock:
            _hashes[sha256] = known
            while len(_hashes) > _HASHES_MOST:
                _hashes.popitem(last=False)
    return known


def list_references(name: str, *, brand: str | None, prompt: str) -> dict[str, Any]:
    """`onmodel references`: the ranking of a character's library for a prompt, with the reasons."""
    with open_store() as store:
        with store.database.transaction() as session:  # nobody waits for the engine to hear of a name that there is not
            libraries.find_character(session, name, brand)
        made, tower = engine(store.settings), text_tower(store.settings)
        text = tower.texts([prompt])[0] if tower is not None and prompt else None
        with store.database.transaction() as session:
            character, today = libraries.find_character(session, name, brand), datetime.now(UTC).date()
            found = find_references(session, store, character, made.encoder.sha256, today)
        return found.rank(prompt, text).as_json()
