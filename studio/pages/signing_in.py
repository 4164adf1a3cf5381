"""`/sign-in`: by a link, and by the company's provider where there is one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from asset_store.errors import NotSignedIn, ProviderUnreachable, SignInRefused, StoreError
from asset_store.people import company
from asset_store.people.passes import SESSION_FOR, hash_of
from studio.api.callers import COOKIE, StoreDep, check_rate
from studio.api.company import Answer, Provider
from studio.api.problems import problem_of
from studio.pages.rendering import page

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
PLACE = "/sign-in/company"
Short, Long = Query(max_length=200), Query(max_length=4000)


@router.get("/sign-in")
def sign_in_page(request: Request, next: Annotated[str, Long] = "/") -> Response:
    """Its script takes the token from behind the #, which no server sees."""
    return _page(request, company.local_path(next))


@router.get(PLACE)
def begin(request: Request, store: StoreDep, next: Annotated[str, Long] = "/") -> Response:
    """Send the browser to the provider. What it holds in its cookie shows later that it is the same browser."""
    provider = _provider(request)
    check_rate(request.app.state.sign_ins, _from(request))
    with store.database.transaction() as session:
        attempt = company.begin_attempt(session, next)
    try:
        address = provider.address(attempt, _back_to(request, store))
    except ProviderUnreachable as error:
        return _page(request, company.local_path(next), error)
    answer = RedirectResponse(address, 303)
    answer.set_cookie(
        _cookie(attempt.state), attempt.secret, max_age=int(company.ATTEMPT_FOR.total_seconds()), path=PLACE, httponly=True,
        samesite="lax", secure=_is_secure(request, store),
    )  # fmt: skip
    return answer


@router.get(f"{PLACE}/callback")
def finish(
    request: Request, store: StoreDep, state: Annotated[str, Short] = "", code: Annotated[str, Long] = "",
    error: Annotated[str, Short] = "", iss: Annotated[str, Query(max_length=1000)] = "",
) -> Response:  # fmt: skip
    """Sign in who comes back from the provider, once. No transaction is open while the provider is asked."""
    provider = _provider(request)
    check_rate(request.app.state.sign_ins, f"callback {_from(request)}")
    attempt = company.Attempt(state, request.cookies.get(_cookie(state), ""))
    try:
        with store.database.transaction() as session:
            next_path = company.use_attempt(session, attempt)
        who = provider.identity(Answer(code, error, iss), attempt, _back_to(request, store))
        with store.database.transaction() as session:
            token = company.sign_in(session, who, store.settings.oidc.domains)
    except (NotSignedIn, SignInRefused, ProviderUnreachable) as refusal:
        answer = _page(request, "/", refusal)
    else:
        answer = RedirectResponse(next_path, 303)
        answer.set_cookie(
            COOKIE, token, max_age=int(SESSION_FOR.total_seconds()), httponly=True, samesite="lax",
            secure=_is_secure(request, store),
        )  # fmt: skip
    answer.delete_cookie(_cookie(state), path=PLACE)
    return answer


def _page(request: Request, next_path: str, refusal: StoreError | None = None) -> Response:
    provider: Provider | None = request.app.state.provider
    told = {} if refusal is None else {"problem": problem_of(refusal)}
    name = None if provider is None else provider.settings.name
    return page(request, "sign_in.html", None, company=name, place=PLACE, next_path=next_path, **told)


def _provider(request: Request) -> Provider:
    provider: Provider | None = request.app.state.provider
    if provider is None:
        raise HTTPException(404, "people sign in by links here")
    return provider


def _cookie(state: str) -> str:
    """One an attempt, so that two that are begun in one browser can both be finished."""
    return f"onmodel_attempt_{hash_of(state)[:16]}"


def _back_to(request: Request, store: StoreDep) -> str:
    """Where the provider sends the browser back to, which is registered there: at the address that the settings name, else at
    the one that the browser asked for."""
    return (store.settings.telling.address or str(request.base_url)).rstrip("/") + f"{PLACE}/callback"


def _is_secure(request: Request, store: StoreDep) -> bool:
    return _back_to(request, store).startswith("https:")


def _from(request: Request) -> str:
    return request.client.host if request.client else "somebody"
