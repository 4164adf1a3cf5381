"""`/s/TOKEN`: what somebody without an account sees of a share link."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from asset_store.errors import NotFound, PasswordWrong
from asset_store.people import shares
from asset_store.people.passes import hash_of
from asset_store.pictures.thumbnails import thumbnail
from asset_store.reviewing.comments import remarks_of
from asset_store.reviewing.decide import GUEST
from studio.api.callers import StoreDep, check_rate
from studio.pages.rendering import page

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
Token = Annotated[str, Path(max_length=100)]
PRIVATE = {"Cache-Control": "no-store"}  # a link that is revoked shows nothing more


def _cookie(token: str) -> str:
    return f"onmodel_share_{hash_of(token)[:16]}"


def _proof(request: Request, token: str) -> str:
    return request.cookies.get(_cookie(token), "")


@router.get("/s/{token}")
def shared_page(token: Token, request: Request, store: StoreDep) -> Response:
    """The link's pictures with what guests said of them, or the question for its password."""
    check_rate(request.app.state.callers, f"share {hash_of(token)[:16]}")
    with store.database.reading() as session:
        try:
            link = shares.open_link(session, token, _proof(request, token))
        except PasswordWrong:
            return page(request, "share_password.html", None, token=token, told="")
        shown = shares.shown(session, link)
        said: dict[uuid.UUID, list[dict[str, str]]] = {}
        for remark in remarks_of(session, *(asset.id for asset in shown)):
            if remark.by.startswith(GUEST):
                told = {"by": remark.by.removeprefix(GUEST), "text": remark.text}
                said.setdefault(remark.version_id, []).append(told)
        cards = [
            {
                "version": str(asset.current.id), "shot": asset.shot, "variant": asset.variant + 1,
                "thumbnail": f"/s/{token}/thumbnails/{asset.current.sha256}", "picture": f"/s/{token}/pictures/{asset.current.sha256}",
                "comments": said.get(asset.current.id, []),
            }
            for asset in shown if asset.current is not None
        ]  # fmt: skip
        return page(request, "share.html", None, link=link, cards=cards, token=token, comment_id=uuid.uuid4)


@router.post("/s/{token}")
def unlock(
    token: Token, request: Request, store: StoreDep, password: Annotated[str, Form(max_length=shares.LONGEST_PASSWORD)]
) -> Response:
    """The password, once; a cookie remembers that it was known."""
    check_rate(request.app.state.sign_ins, f"share {hash_of(token)[:16]}")
    with store.database.transaction() as session:
        try:
            proof = shares.unlock(session, token, password)
        except PasswordWrong as error:
            return page(request, "share_password.html", None, token=token, told=f"{error.message}. {error.next_step}")
    answer = RedirectResponse(f"/s/{token}", 303)
    answer.set_cookie(
        _cookie(token), proof, httponly=True, samesite="lax", secure=request.url.scheme == "https", path=f"/s/{token}"
    )
    return answer


@router.get("/s/{token}/thumbnails/{sha256}")
def shared_thumbnail(token: Token, sha256: str, request: Request, store: StoreDep) -> Response:
    _need_picture(token, sha256, request, store)
    return Response(
        thumbnail(store.blobs, sha256, store.settings.home / "thumbnails"), media_type="image/webp", headers=PRIVATE
    )


@router.get("/s/{token}/pictures/{sha256}")
def shared_picture(token: Token, sha256: str, request: Request, store: StoreDep) -> Response:
    _need_picture(token, sha256, request, store)
    return Response(store.blobs.get(sha256), media_type="image/png", headers=PRIVATE)


@router.post("/s/{token}/comments")
def comment(
    token: Token, request: Request, store: StoreDep, version: Annotated[uuid.UUID, Form()], id: Annotated[uuid.UUID, Form()],
    name: Annotated[str, Form(max_length=200)], text: Annotated[str, Form(max_length=8000)],
) -> Response:  # fmt: skip
    """A guest's remark; sent twice by a browser, it is written once."""
    check_rate(request.app.state.callers, f"share {hash_of(token)[:16]}")
    with store.database.transaction() as session:
        link = shares.open_link(session, token, _proof(request, token))
        shares.say(session, link, version, name, text, id)
    return RedirectResponse(f"/s/{token}#{version}", 303)


def _need_picture(token: str, sha256: str, request: Request, store: StoreDep) -> None:
    """Only the current pictures of the link's assets: nothing else is shown under it."""
    check_rate(request.app.state.callers, f"share {hash_of(token)[:16]}")
    with store.database.transaction() as session:
        link = shares.open_link(session, token, _proof(request, token))
        if shares.find_shown(session, link, sha256) is None:
            raise NotFound("picture of this link", sha256)
