"""What one client of `make bench-clients` does, and whether it was answered as it may be."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx

from benchmarks.client_keys import Key, Kind
from benchmarks.many_assets import BRANDS, CHARACTERS_A_BRAND

PAUSE_S = {Kind.AGENT: (0.0, 0.3)}
USUAL_PAUSE_S = (0.5, 1.5)
FOLLOWED_S = 8.0
VIEWS = ("front", "side", "back", "three-quarter")
# Each with what it is called in the figures, its weight, and who does it.
READS = {"list": 6, "asset": 4, "room": 3, "picture": 5, "thumbnail": 6, "runs": 2, "of another brand": 2}
ASKS = {"sheet": 4, "sheet again": 3, "sheet under a used key": 2, "cancel": 1, "follow": 3}


@dataclass(slots=True)
class Seen:
    """Of all clients: milliseconds by kind of request, and what should not have been."""

    times_ms: dict[str, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    two_runs: list[str] = field(default_factory=list)
    let_in: int = 0
    not_told: int = 0
    spent: int = 0
    replayed: int = 0
    took_s: float = 0.0
    processor_s: float = 0.0


class Client:
    """One program with one key, that does one thing after another."""

    def __init__(
        self, http: httpx.AsyncClient, key: Key, shown: dict[str, list[tuple[str, str]]], seen: Seen, seed: int
    ) -> None:
        self.http, self.key, self.shown, self.seen = http, key, shown, seen
        self.rng = random.Random(seed)
        self.headers = {"Authorization": f"Bearer {key.secret}"}
        self.mine = [a for brand, of in shown.items() if key.brand in (None, brand) for a in of]
        self.others = [a for brand, of in shown.items() if key.brand not in (None, brand) for a in of]
        self.asked: dict[
            str, tuple[dict[str, Any], str]
        ] = {}  # by idempotency key: the body, and the run it was answered
        self.runs: list[str] = []

    async def work(self, ends_at: float) -> None:
        does = dict(READS)
        if self.key.kind in (Kind.PRODUCER, Kind.AGENT):
            does |= ASKS
        for name, among in (("asset", self.mine), ("room", self.mine), ("picture", self.mine), ("thumbnail", self.mine),
                            ("of another brand", self.others)):  # fmt: skip
            if not among:
                del does[name]
        acts = {
            "list": self._list, "asset": self._asset, "room": self._room, "picture": self._picture, "thumbnail": self._thumbnail,
            "runs": self._runs, "of another brand": self._of_another_brand, "sheet": self._sheet, "sheet again": self._sheet_again,
            "sheet under a used key": self._sheet_under_a_used_key, "cancel": self._cancel, "follow": self._follow,
        }  # fmt: skip
        while time.perf_counter() < ends_at:
            act = acts[self.rng.choices(list(does), list(does.values()))[0]]
            try:
                await act()
            except httpx.HTTPError as error:
                self.seen.faults.append(f"{act.__name__}: {type(error).__name__} {error}")
            await asyncio.sleep(self.rng.uniform(*PAUSE_S.get(self.key.kind, USUAL_PAUSE_S)))

    # ------------------------------------------------------------------------ looking

    async def _list(self) -> None:
        asked = self.rng.choice([{}, {"review": "in review"}, {"text": "beach"}, {"limit": "100"}, {"counts": "true"}])
        other = f"brand-{self.rng.randrange(BRANDS)}"
        await self._get(
            "list of assets", "/v1/assets", params={**asked, **({"brand": other} if self.rng.random() < 0.2 else {})}
        )

    async def _asset(self) -> None:
        await self._get("asset", f"/v1/assets/{self.rng.choice(self.mine)[0]}")

    async def _room(self) -> None:
        await self._get("room", f"/assets/{self.rng.choice(self.mine)[0]}")

    async def _picture(self) -> None:
        id_, sha256 = self.rng.choice(self.mine)
        await self._get("picture", f"/v1/assets/{id_}/pictures/{sha256}")

    async def _thumbnail(self) -> None:
        id_, sha256 = self.rng.choice(self.mine)
        await self._get("thumbnail", f"/v1/assets/{id_}/thumbnails/{sha256}")

    async def _runs(self) -> None:
        await self._get("list of runs", "/v1/runs")

    async def _of_another_brand(self) -> None:
        id_, sha256 = self.rng.choice(self.others)
        place = self.rng.choice(["", f"/pictures/{sha256}", f"/thumbnails/{sha256}", "/lineage", "/similar"])
        answer = await self._get("another brand's", f"/v1/assets/{id_}{place}", expected=(404,))
        if answer.is_success:
            self.seen.foreign.append(f"{self.key.actor} got {answer.request.url}")

    # ------------------------------------------------------------------------ asking

    async def _sheet(self) -> None:
        """A sheet under a key of its own, sometimes sent several times at once, as by a client that lost its connection."""
        name = str(uuid.uuid4())
        brand = self.key.brand or "brand-0"
        body = {
            "brand": brand, "character": f"hero-{brand[-1]}-{self.rng.randrange(CHARACTERS_A_BRAND)}", "reason": name,
            "views": list(VIEWS[: self.rng.randint(1, len(VIEWS))]), "seed": self.rng.randrange(1000),
        }  # fmt: skip
        times = self.rng.choice([1, 1, 2, 4])
        answers = await asyncio.gather(*(self._ask(name, body) for _ in range(times)))
        made = [a for a in answers if a.status_code == HTTPStatus.ACCEPTED]
        if made:
            self.asked[name] = (body, made[0].json()["id"])
            self.runs.append(made[0].json()["id"])
            self._need_one_run(name, made)

    async def _sheet_again(self) -> None:
        if self.asked:
            name = self.rng.choice(list(self.asked))
            answer = await self._ask(name, self.asked[name][0])
            if answer.status_code == HTTPStatus.ACCEPTED:
                self._need_one_run(name, [answer])

    async def _sheet_under_a_used_key(self) -> None:
        if self.asked:
            name = self.rng.choice(list(self.asked))
            changed = {**self.asked[name][0], "seed": 1001}
            await self._post("sheet", "/v1/character-sheets", changed, {"Idempotency-Key": name}, (422,))

    async def _ask(self, name: str, body: dict[str, Any]) -> httpx.Response:
        answer = await self._post("sheet", "/v1/character-sheets", body, {"Idempotency-Key": name}, (202, 429))
        self.seen.spent += answer.status_code == HTTPStatus.TOO_MANY_REQUESTS and "QuotaSpent" in answer.text
        self.seen.replayed += answer.headers.get("Idempotent-Replayed") == "true"
        return answer

    def _need_one_run(self, name: str, answers: Sequence[httpx.Response]) -> None:
        known = self.asked[name][1]
        if any(answer.json()["id"] != known for answer in answers):
            self.seen.two_runs.append(f"{name}: {known}, {[a.json()['id'] for a in answers]}")

    async def _cancel(self) -> None:
        if self.runs:
            await self._post("cancellation", f"/v1/runs/{self.rng.choice(self.runs)}/cancellation", None, {}, (200,))

    async def _follow(self) -> None:
        """Follow a run, and cancel it meanwhile: the end is told."""
        if not self.runs:
            return
        run, began, first, ended = self.rng.choice(self.runs), time.perf_counter(), False, False
        cancelling: asyncio.Task[Any] | None = None
        try:
            async with (
                asyncio.timeout(FOLLOWED_S),
                self.http.stream("GET", f"/v1/runs/{run}/events", headers=self.headers) as told,
            ):
                if told.status_code == HTTPStatus.TOO_MANY_REQUESTS:
                    return
                if not self._is_expected("events", told, (200,)):
                    return
                async for line in told.aiter_lines():
                    if line.startswith("data:"):
                        self._need_own_brand(told, json.loads(line[5:]))
                    if line.startswith("event:") and not first:
                        first = True
                        self._timed("events, until the first", began)
                        path = f"/v1/runs/{run}/cancellation"
                        cancelling = asyncio.create_task(self._post("cancellation", path, None, {}, (200,)))
                    if line.startswith("event: end"):
                        ended = True
                        break
        except TimeoutError:
            pass
        if cancelling is not None:
            await cancelling
        self.seen.not_told += not ended

    # ------------------------------------------------------------------------ answers

    async def _get(self, kind: str, path: str, expected: Sequence[int] = (200,), **more: Any) -> httpx.Response:
        began = time.perf_counter()
        answer = await self.http.get(path, headers=self.headers, **more)
        return self._answered(kind, began, answer, expected)

    async def _post(
        self, kind: str, path: str, body: Any, headers: dict[str, str], expected: Sequence[int]
    ) -> httpx.Response:
        began = time.perf_counter()
        answer = await self.http.post(path, json=body, headers={**self.headers, **headers})
        return self._answered(kind, began, answer, expected)

    def _answered(self, kind: str, began: float, answer: httpx.Response, expected: Sequence[int]) -> httpx.Response:
        self._timed(kind, began)
        if self._is_expected(kind, answer, expected) and answer.is_success:
            if answer.headers["content-type"].startswith("application/json"):
                self._need_own_brand(answer, answer.json())
            elif answer.headers["content-type"].startswith("text/html"):
                self._need_brands(answer, set(re.findall(r"brand-\d", answer.text)))
        return answer

    def _timed(self, kind: str, began: float) -> None:
        if self.key.kind is Kind.OVER:
            kind = "key that is over"
        self.seen.times_ms.setdefault(kind, []).append((time.perf_counter() - began) * 1000)

    def _is_expected(self, kind: str, answer: httpx.Response, expected: Sequence[int]) -> bool:
        """429 may always be: a caller is let through 50 times a second."""
        status = answer.status_code
        if self.key.kind is Kind.OVER:
            self.seen.let_in += status != HTTPStatus.UNAUTHORIZED and not (answer.is_redirect and kind == "room")
            return False
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.seen.faults.append(f"{kind}: {status} {answer.request.url}")
        elif status not in (*expected, HTTPStatus.TOO_MANY_REQUESTS):
            self.seen.strange.append(
                f"{kind} of {self.key.actor}: {status} {answer.request.method} {answer.request.url}"
            )
        return status in expected

    def _need_own_brand(self, answer: httpx.Response, told: Any) -> None:
        self._need_brands(answer, set(_brands(told)))

    def _need_brands(self, answer: httpx.Response, brands: set[str]) -> None:
        if self.key.brand is not None and brands - {self.key.brand}:
            self.seen.foreign.append(
                f"{self.key.actor} of {self.key.brand} saw {sorted(brands)} at {answer.request.url}"
            )


def _brands(told: Any) -> list[str]:
    """Every brand that an answer names, however deep."""
    if isinstance(told, dict):
        mine = [told["brand"]] if isinstance(told.get("brand"), str) else []
        return mine + [brand for value in told.values() for brand in _brands(value)]
    return [brand for value in told for brand in _brands(value)] if isinstance(told, list) else []
