"""What of `/v1` the client calls; a test holds each against the server's own description."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """makes: it takes an Idempotency-Key; again: sent twice it does nothing twice, also without one."""

    method: str
    path: str
    makes: bool = False
    again: bool = True


ME = Route("GET", "/v1/me")
ASSETS = Route("GET", "/v1/assets")
ASSET = Route("GET", "/v1/assets/{asset_id}")
LINEAGE = Route("GET", "/v1/assets/{asset_id}/lineage")
SIMILAR_TO_ASSET = Route("GET", "/v1/assets/{asset_id}/similar")
PICTURE = Route("GET", "/v1/assets/{asset_id}/pictures/{sha256}")
THUMBNAIL = Route("GET", "/v1/assets/{asset_id}/thumbnails/{sha256}")
COMMENTS = Route("GET", "/v1/assets/{asset_id}/comments")
SAY = Route("POST", "/v1/assets/{asset_id}/comments")  # its id makes it once
ASSIGNMENTS = Route("GET", "/v1/assets/{asset_id}/assignments")
ASSIGN = Route("POST", "/v1/assets/{asset_id}/assignments", makes=True)
UNASSIGN = Route("DELETE", "/v1/assets/{asset_id}/assignments", again=False)  # the second finds nobody
RETAKE_PLAN = Route("GET", "/v1/assets/{asset_id}/retake")
RETAKE = Route("POST", "/v1/assets/{asset_id}/retake", makes=True)
PLACES = Route("GET", "/v1/places")
RELEASE = Route("POST", "/v1/assets/{asset_id}/releases", makes=True)
CAMPAIGNS = Route("GET", "/v1/campaigns")
START_CAMPAIGN = Route("POST", "/v1/campaigns", makes=True)
SCHEDULES = Route("GET", "/v1/schedules")
SCHEDULE = Route("POST", "/v1/schedules", makes=True)
CALENDAR = Route("GET", "/v1/schedules/{schedule_id}/calendar")
PAUSE = Route("POST", "/v1/schedules/{schedule_id}/pause")
RESUME = Route("POST", "/v1/schedules/{schedule_id}/resumption")
END_SCHEDULE = Route("DELETE", "/v1/schedules/{schedule_id}")
CHARACTERS = Route("GET", "/v1/characters")
REFERENCES = Route("GET", "/v1/references")
REFERENCES_BY_WORDS = Route("GET", "/v1/references/search")
REFERENCES_BY_PICTURE = Route("POST", "/v1/references/search")  # it looks, and keeps nothing
SIMILAR_TO_REFERENCE = Route("GET", "/v1/references/{reference_id}/similar")
REFERENCE_PICTURE = Route("GET", "/v1/references/{reference_id}/picture")
REFERENCE_THUMBNAIL = Route("GET", "/v1/references/{reference_id}/thumbnail")
MAKE_SHEET = Route("POST", "/v1/character-sheets", makes=True)
SHEET_FILE = Route("GET", "/v1/character-sheets/{run_id}/sheet.{kind}")
RUNS = Route("GET", "/v1/runs")
RUN = Route("GET", "/v1/runs/{run_id}")
EVENTS = Route("GET", "/v1/runs/{run_id}/events")
CANCEL = Route("POST", "/v1/runs/{run_id}/cancellation")

ALL = tuple(value for value in tuple(globals().values()) if isinstance(value, Route))
