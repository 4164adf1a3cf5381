"""Errors as problem+json (RFC 9457): which status each of the store's errors is, and what every answer carries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from starlette.exceptions import HTTPException

from asset_store import errors
from asset_store.errors import OnmodelError, StoreError

log = logging.getLogger("onmodel.api")
MEDIA_TYPE = "application/problem+json"

STATUS: dict[type[OnmodelError], int] = {
    errors.NotSignedIn: 401,
    errors.Forbidden: 403,
    errors.PasswordWrong: 403,
    errors.SignInRefused: 403,
    errors.FourEyes: 403,
    errors.NotFound: 404,
    errors.Ambiguous: 409,
    errors.TransitionRefused: 409,
    errors.StageRefused: 409,
    errors.RetakeRefused: 409,
    errors.ReleaseRefused: 409,
    errors.RightsRefused: 409,
    errors.RunOver: 409,
    errors.ScheduleRefused: 409,
    errors.BudgetSpent: 409,
    errors.LineageIncomplete: 409,
    errors.QuotaSpent: 429,
    errors.SearchBusy: 429,
    errors.SearchUnavailable: 503,
    errors.StaleVersion: 412,
    errors.ReasonMissing: 422,
    errors.RemarkRefused: 422,
    errors.AccountRefused: 422,
    errors.ShareRefused: 422,
    errors.SubscriptionRefused: 422,
    errors.KeyReused: 422,
    errors.FileInvalid: 422,
    errors.PlaceInvalid: 422,
    errors.NotASha256: 422,
    errors.PictureRefused: 422,
    errors.SourceKeyRefused: 422,
    errors.SourceObjectMissing: 422,
    errors.SourceObjectTooBig: 422,
    errors.PictureRemoved: 410,
    errors.BlobMissing: 503,
    errors.BlobCorrupt: 503,
    errors.BlobStoreUnreachable: 503,
    errors.SourceUnreachable: 503,
    errors.DatabaseUnreachable: 503,
    errors.DatabaseTooOld: 503,
    errors.DatabaseTooNew: 503,
    errors.VectorMissing: 503,
    errors.DeliveryFailed: 503,
    errors.ProviderUnreachable: 503,
    errors.SettingsInvalid: 503,
}


def status_of(error: OnmodelError) -> int:
    """The status of the nearest class that has one."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 400)


def problem(status: int, title: str, *, next_step: str = "", kind: str = "", **more: Any) -> dict[str, Any]:
    """The body of an error. `type` names the error, so that a program need not read `title`; `next_step` is for people."""
    body: dict[str, Any] = {"type": f"urn:onmodel:problem:{kind or status}", "title": title, "status": status}
    return body | ({"next_step": next_step} if next_step else {}) | more


def problem_of(error: OnmodelError) -> dict[str, Any]:
    told = problem(status_of(error), error.message, next_step=error.next_step, kind=type(error).__name__)
    if isinstance(error, errors.FileInvalid):
        told["problems"] = [{"where": p.field, "line": p.line, "says": p.message} for p in error.problems]
    return told


def answer(body: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(body, int(body["status"]), headers, MEDIA_TYPE)


def _told(request: Request, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """For programs as JSON; for who opened a page as a page, where the application has one for it."""
    page = getattr(request.app.state, "problem_page", None)
    if page is None or request.url.path.startswith(("/v1/", "/static/")):
        return answer(body, headers)
    shown: Response = page(request, body)
    shown.headers.update(headers or {})
    return shown


def install(app: FastAPI) -> None:
    """Have every error answered so."""
    app.add_exception_handler(StoreError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _away)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(IntegrityError, _raced)
    app.add_exception_handler(UnicodeEncodeError, _unstorable)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, errors.NotSignedIn) else None
    if isinstance(error, errors.QuotaSpent | errors.SearchBusy):
        headers = {"Retry-After": str(error.wait_s)}
    return _told(request, problem_of(error), headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = [{"where": ".".join(map(str, e["loc"])), "says": e["msg"]} for e in error.errors()]
    return _told(request, problem(422, _sentence(told), kind="Invalid", problems=told))


def _sentence(told: Sequence[dict[str, str]]) -> str:
    first = f"{told[0]['where']}: {told[0]['says']}" if told else "the request cannot be read"
    return first if len(told) < 2 else f"{first}, and {len(told) - 1} more"


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = error.detail if isinstance(error.detail, str) else HTTPStatus(error.status_code).phrase
    return _told(request, problem(error.status_code, title), dict(error.headers or {}))


async def _away(request: Request, error: Exception) -> Response:
    log.warning("the database is away: %s", error)
    return _told(
        request, problem(503, "the database cannot be reached now", next_step="Try again in a moment.", kind="Away")
    )


async def _unstorable(request: Request, error: Exception) -> Response:
    """PostgreSQL stores no NUL, no half surrogate pair, and no number beyond its columns."""
    told = "the request has text or a number that cannot be stored"
    return _told(
        request, problem(422, told, next_step="Leave out NUL characters and half surrogate pairs.", kind="Unstorable")
    )


async def _raced(request: Request, error: Exception) -> Response:
    """Two requests wrote the same at once; the other was first."""
    told = "the same was written at once by another request"
    return _told(request, problem(409, told, next_step="Look again, and send it again if it is missing.", kind="Raced"))
