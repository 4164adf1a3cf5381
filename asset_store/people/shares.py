"""Share links: some pictures of one brand for people without an account, to look at and, if so, to comment on."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, exists, or_, select
from sqlalchemy.orm import Session, selectinload

from asset_store import audit
from asset_store.errors import NotFound, PasswordWrong, ShareRefused
from asset_store.people.passes import hash_of, new_token
from asset_store.reviewing import comments
from asset_store.reviewing.decide import GUEST
from asset_store.reviewing.questions import is_current
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import (
    Asset,
    AssetVersion,
    Campaign,
    Comment,
    Descent,
    Reference,
    ReferenceState,
    ShareLink,
)

MOST_ASSETS, LONGEST_SHARE = 500, timedelta(days=90)
LONGEST_NAME, LONGEST_TITLE, LONGEST_PASSWORD = 60, 120, 200
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}  # 16 MB and some 50 ms a guess


def share(
    session: Session, assets: Collection[uuid.UUID], title: str, lasts: timedelta, by: str, *,
    can_comment: bool = False, password: str | None = None,
) -> tuple[ShareLink, str]:  # fmt: skip
    """A link to these assets, all of one brand, and its token, which is known this once. ShareRefused; NotFound."""
    wanted, title = sorted(set(assets)), " ".join(title.split())
    if not 0 < len(wanted) <= MOST_ASSETS:
        raise ShareRefused(f"a link shows {len(wanted)} pictures", f"Choose 1 to {MOST_ASSETS}.")
    if not title or len(title) > LONGEST_TITLE:
        raise ShareRefused("a link needs a title", f"Say in at most {LONGEST_TITLE} letters what it shows.")
    if not timedelta(0) < lasts <= LONGEST_SHARE:
        raise ShareRefused("a link ends within 90 days", "Give an end.")
    if password is not None and not 8 <= len(password) <= LONGEST_PASSWORD:
        raise ShareRefused("a password is too short or too long", f"Give 8 to {LONGEST_PASSWORD} characters, or none.")
    found = session.execute(
        select(Asset.id, Campaign.brand_id).join(Campaign, Campaign.id == Asset.campaign_id).where(Asset.id.in_(wanted))
    ).all()
    if missing := set(wanted) - {row[0] for row in found}:
        raise NotFound("asset", str(min(missing)))
    brands = {row[1] for row in found}
    if len(brands) > 1:
        raise ShareRefused("the pictures are of several brands", "Make a link for each brand.")
    token = new_token()
    link = ShareLink(
        sha256=hash_of(token), title=title, brand_id=brands.pop(), assets=wanted, can_comment=can_comment,
        password_hash=None if password is None else hash_password(password), expires_at=datetime.now(UTC) + lasts, by=by,
    )  # fmt: skip
    session.add(link)
    session.flush()
    told = {"title": title, "assets": len(wanted), "can_comment": can_comment, "until": link.expires_at.isoformat(),
            "password": password is not None}  # fmt: skip
    audit.record(session, by, "share", f"share {link.id}", told)
    return link, token


def links(session: Session, within: Collection[uuid.UUID] | None) -> Sequence[ShareLink]:
    """The links of these brands (None: of all), the newest first."""
    question = select(ShareLink).order_by(ShareLink.made_at.desc(), ShareLink.id)
    return session.scalars(question if within is None else question.where(ShareLink.brand_id.in_(within))).all()


def revoke_link(session: Session, link_id: uuid.UUID, by: str) -> ShareLink:
    """Show nothing under it any more, at once."""
    link = session.get(ShareLink, link_id)
    if link is None:
        raise NotFound("share link", str(link_id))
    if link.revoked_at is None:
        link.revoked_at = datetime.now(UTC)
        session.flush()
        audit.record(session, by, "revoke share", f"share {link.id}", {"title": link.title})
    return link


def open_link(session: Session, token: str, proof: str = "") -> ShareLink:
    """The link of a token; with a password, of who has shown that they know it. NotFound; PasswordWrong."""
    link = session.scalar(select(ShareLink).where(ShareLink.sha256 == hash_of(token)))
    if link is None or link.revoked_at is not None or link.expires_at <= datetime.now(UTC):
        raise NotFound("share link", "like this, or no longer", "Ask who sent it for another one.")
    if link.password_hash is not None and not hmac.compare_digest(proof.encode(), proof_of(token, link).encode()):
        raise PasswordWrong("these pictures are behind a password", "Ask who sent the link for it.")
    return link


def unlock(session: Session, token: str, password: str) -> str:
    """What shows from now on that the password is known, until the link or its password changes. PasswordWrong."""
    link = session.scalar(select(ShareLink).where(ShareLink.sha256 == hash_of(token)))
    if link is None or link.password_hash is None or not is_password(password, link.password_hash):
        raise PasswordWrong("this is not the password", "Ask who sent the link for it.")
    return proof_of(token, link)


def proof_of(token: str, link: ShareLink) -> str:
    """Nobody can make it who does not know the stored hash, which leaves the database in no other form."""
    return hmac.new((link.password_hash or "").encode(), token.encode(), hashlib.sha256).hexdigest()


def shown(session: Session, link: ShareLink) -> Sequence[Asset]:
    """The link's assets that may be shown now: in review or decided on and not rejected, neither suspended nor withdrawn nor
    expired, and come of references that may be used today."""
    question = select(Asset).where(*_may_be_shown(link)).options(selectinload(Asset.versions))
    return session.scalars(question.order_by(Asset.made_at, Asset.id)).all()


def find_shown(session: Session, link: ShareLink, sha256: str) -> AssetVersion | None:
    """The current version of one of those assets with these bytes."""
    return session.scalar(
        select(AssetVersion)
        .join(Asset, Asset.id == AssetVersion.asset_id)
        .where(AssetVersion.sha256 == sha256, is_current(), *_may_be_shown(link))
        .limit(1)
    )


def _may_be_shown(link: ShareLink) -> Sequence[ColumnElement[bool]]:
    today = datetime.now(UTC).date()
    unusable = (
        exists()
        .where(AssetVersion.asset_id == Asset.id, Descent.version_id == AssetVersion.id)
        .where(Reference.id == Descent.reference_id)
        .where(or_(Reference.state != ReferenceState.ACTIVE, Reference.licence_until < today))
    )
    return (
        Asset.id.in_(link.assets),
        Asset.review.in_((ReviewState.IN_REVIEW, ReviewState.CHANGES_REQUESTED, ReviewState.APPROVED)),
        Asset.availability.in_((Availability.UNRELEASED, Availability.RELEASED)),
        ~unusable,
    )


def say(session: Session, link: ShareLink, version_id: uuid.UUID, guest: str, text: str, id_: uuid.UUID) -> Comment:
    """A guest's remark on a picture of the link. Guests are told apart from people by `guest:` before their name."""
    name = " ".join(guest.split())
    if not link.can_comment:
        raise ShareRefused("this link is to look at", "Ask who sent it for one to comment on.")
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ShareRefused("a comment needs your name", f"Give it in at most {LONGEST_NAME} letters.")
    version = session.get(AssetVersion, version_id)
    if version is None or find_shown(session, link, version.sha256) is None:
        raise NotFound("picture of this link", str(version_id))
    return comments.comment(session, version_id, f"{GUEST}{name}", text, id_=id_)


def hash_password(password: str) -> str:
    salt = secrets.token_bytes(16)
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


def is_password(password: str, stored: str) -> bool:
    _, salt, made = stored.split("$")
    if len(password) > LONGEST_PASSWORD:
        return False
    return hmac.compare_digest(hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), **_SCRYPT).hex(), made)
