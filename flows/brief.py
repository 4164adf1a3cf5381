"""A campaign as YAML: what pictures are wanted, of whom, how many, and who approves them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from asset_store.checks import CheckPolicy
from asset_store.errors import BriefInvalid
from asset_store.library.keys import safe_key
from asset_store.library.models import LineOfText, RelativePath, Slug
from asset_store.library.yaml_lines import YamlDocument
from asset_store.library.yaml_model import parse_yaml
from asset_store.reviewing import policy
from flows import variables as open_words
from flows.brief_fields import ModelChoice, Number, Part, Prompt, Seed, Size, Whole, Window, check_window
from flows.brief_parts import (
    Blocks,
    NamedLora,
    NamedReference,
    OrderedWindow,
    References,
    Region,
    RegionName,
    ScaleSteps,
    Source,
    Style,
    check_regions,
)
from flows.budget import Budget
from flows.timetable import Schedule
from flows.variables import Variables
from ipadapter_engine.emphasis import Combine

DEFAULT_VARIANTS = 1
LONGEST_SCHEDULED = 45
_CAME_LATER = ("controls", "character_model", "best_of", "style_references", "blocks", "scale_steps", "combine", "style",
               "guidance_window", "negative_references", "source", "regions", "region", "engine", "loras")  # fmt: skip


class NamedControl(Part):
    """A picture that says how the shot is composed. `picture`: a file of the library, or a path beside the brief.

    kind: which control of the loaded base hears it, such as pose. `extract`: the picture is an ordinary one, and the
    control is drawn from it; else it is the control itself. `window`: the share of the steps in which it speaks.
    """

    kind: Slug
    picture: RelativePath
    strength: Number = Field(1.0, ge=0, le=10)
    window: Window = (0.0, 1.0)
    extract: bool = Field(False, strict=True)

    @model_validator(mode="after")
    def _window_in_order(self) -> NamedControl:
        check_window(self.window)
        return self


class Making(Part):
    """How pictures are made; what a shot leaves out comes from `defaults`, what these leave out from the family.

    best_of: candidates a variant, of which the one most like its references is kept. blocks, scale_steps, combine: how
    the identity adapter speaks; style: the style adapter. region: the one of `regions` that the shot's own references
    speak in; without it they speak everywhere.
    engine: one of ONMODEL_ENGINES by its name; left out, the engine that reads libraries. loras: of ONMODEL_ENGINE__LORAS.
    """

    negative_prompt: Prompt | None = None
    scale: Number | None = Field(None, ge=0, le=10)
    window: Window | None = None
    size: Size | None = None
    steps: Whole | None = Field(None, ge=1, le=200)
    guidance: Number | None = Field(None, ge=0, le=50)
    scheduler: str | None = None
    variants: Whole | None = Field(None, ge=1, le=1000)
    choose: Whole | None = Field(None, ge=1, le=16)
    controls: tuple[NamedControl, ...] | None = Field(None, max_length=4)
    character_model: ModelChoice | None = None
    best_of: Whole | None = Field(None, ge=1, le=64)
    style_references: tuple[str | NamedReference, ...] | None = Field(None, max_length=16)
    blocks: Blocks | None = None
    scale_steps: ScaleSteps | None = None
    combine: Combine | None = None
    style: Style | None = None
    guidance_window: OrderedWindow | None = None
    negative_references: tuple[str | NamedReference, ...] | None = Field(None, max_length=16)
    source: Source | None = None
    regions: tuple[Region, ...] | None = Field(None, max_length=16)
    region: RegionName | None = None
    engine: Slug | None = None
    loras: tuple[NamedLora, ...] | None = Field(None, max_length=8)

    @model_validator(mode="after")
    def _window_in_order(self) -> Making:
        if self.window is not None:
            check_window(self.window)
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that came later where they are not used: a brief's hash, which says that it is the same
        campaign, must not change with a release."""
        shown: dict[str, Any] = handler(self)
        return {k: v for k, v in shown.items() if v is not None or k not in _CAME_LATER}


class Shot(Making):
    """One picture that is asked for, in `variants`. `references: choose` takes the most typical ones."""

    name: Slug
    character: LineOfText
    prompt: Prompt
    references: References = "choose"
    seed: Seed | None = None
    seeds: tuple[Seed, ...] | None = None

    @model_validator(mode="after")
    def _one_way_to_seed(self) -> Shot:
        if self.seeds is not None and (self.seed is not None or self.variants is not None):
            raise ValueError("give either seeds, one a variant, or seed and variants")
        if self.references == ():
            raise ValueError("name references, write 'choose', or set scale: 0 for text only")
        return self


class _Checks(CheckPolicy):
    """The thresholds as a brief may write them: strict numbers, as everywhere in it."""

    model_config = ConfigDict(strict=True)


def _round(entry: object) -> Any:
    return policy.plain_round(entry)


def checked_stages(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    policy.check_stages(entries)
    return entries


class Brief(Part):
    """stages: who approves; see `asset_store.reviewing.policy`. retakes: how often a picture may be made anew.

    variables: words that shots leave open, as {product}; a shot becomes one for each. schedule: when it runs by itself. budget: what it
    may use. None of the three is in a campaign's own brief: `flows.variables.filled` makes that.
    """

    campaign: Slug
    brand: Slug
    stages: Annotated[tuple[Annotated[Any, AfterValidator(_round)], ...], AfterValidator(checked_stages)] = ("brand",)
    retakes: Whole | None = Field(None, ge=0, le=policy.MOST_RETAKES)
    defaults: Making = Making.model_construct()
    checks: _Checks = _Checks(identity_min=None)
    seed: Seed = 0
    shots: Annotated[tuple[Shot, ...], Field(min_length=1, max_length=open_words.MOST_SHOTS)]
    variables: Variables = {}
    schedule: Schedule | None = None
    budget: Budget | None = None

    @property
    def has_open_words(self) -> bool:
        """Whether braces in its shots are variables, or text as in a brief that has none."""
        return bool(self.variables) or self.schedule is not None

    @property
    def in_regions(self) -> set[str]:
        """The characters that its regions name."""
        makings = (self.defaults, *self.shots)
        return {r.character for making in makings for r in making.regions or () if r.character is not None}

    @property
    def pictures(self) -> int:
        """How many it asks for."""
        usual = self.defaults.variants or DEFAULT_VARIANTS
        return sum(
            (len(s.seeds) if s.seeds is not None else s.variants or usual)
            * (open_words.count(self, s) if self.has_open_words else 1)
            for s in self.shots
        )

    @property
    def drawn(self) -> int:
        """How many the engine draws for them, candidates counted."""
        usual, best = self.defaults.variants or DEFAULT_VARIANTS, self.defaults.best_of or 1
        return sum(
            (len(s.seeds) if s.seeds is not None else s.variants or usual)
            * (s.best_of or best)
            * (open_words.count(self, s) if self.has_open_words else 1)
            for s in self.shots
        )

    @model_validator(mode="after")
    def _budget_of_what_there_is(self) -> Brief:
        if self.budget is not None and self.budget.per != "run" and self.schedule is None:
            raise ValueError("a budget over several runs needs a schedule; leave `per` out")
        if self.schedule is not None and len(self.campaign) > LONGEST_SCHEDULED:
            raise ValueError(
                f"a scheduled campaign's name has at most {LONGEST_SCHEDULED} letters: each run adds its time"
            )
        if self.has_open_words and sum(open_words.count(self, s) for s in self.shots) > open_words.MOST_SHOTS:
            raise ValueError(f"its variables make more than {open_words.MOST_SHOTS} shots")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As in Making: the hash of a brief that does not use a later field stays."""
        later = ("retakes", "variables", "schedule", "budget")
        return {k: v for k, v in handler(self).items() if k not in later or v not in (None, {})}


def parse_brief(text: str, *, file: str) -> Brief:
    """The brief that the text describes; raises BriefInvalid with every problem, by file, line and field."""
    return parse_yaml(text, Brief, file=file, invalid=BriefInvalid, cross_check=_cross_check)


def _cross_check(document: YamlDocument) -> None:
    _unique_names(document)
    check_regions(document)
    open_words.check_names(document)


def _unique_names(document: YamlDocument) -> None:
    shots = document.data.get("shots") if isinstance(document.data, dict) else None
    seen: dict[str, int] = {}
    for place, shot in enumerate(shots if isinstance(shots, list) else []):
        name = shot.get("name") if isinstance(shot, dict) else None
        if isinstance(name, str):
            at = ("shots", place, "name")
            if name in seen:
                document.add(at, f"There is already a shot {safe_key(name)!r}, in line {seen[name]}.")
            seen.setdefault(name, document.line_of(at))
