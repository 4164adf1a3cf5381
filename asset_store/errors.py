"""Everything the asset store may refuse or fail with.

    OnmodelError                    message, next_step
    ├── StoreError
    │   ├── PlaceInvalid            a store or library URL that names no usable place
    │   ├── NotASha256              a blob was asked for by something that is no sha256 (also a ValueError)
    │   ├── BlobMissing             sha256
    │   ├── PictureRemoved          removed_at
    │   ├── BlobCorrupt             key, expected, found
    │   ├── BlobStoreUnreachable
    │   ├── SourceUnreachable
    │   ├── SourceObjectMissing     key
    │   ├── SourceObjectTooBig      key, size_bytes, max_bytes
    │   ├── SourceKeyRefused        key
    │   ├── FileInvalid             problems
    │   │   ├── LibraryFileInvalid
    │   │   └── BriefInvalid
    │   ├── PictureRefused          reason
    │   ├── DatabaseUnreachable
    │   ├── DatabaseTooOld          found
    │   ├── DatabaseTooNew          revision
    │   ├── VectorMissing
    │   ├── NotFound                what, asked
    │   ├── Ambiguous               asked, candidates
    │   ├── TransitionRefused       current, event
    │   ├── StaleVersion            expected, found
    │   ├── StageRefused            asked, waiting
    │   ├── FourEyes                by
    │   ├── ReasonMissing
    │   ├── RemarkRefused
    │   ├── RetakeRefused
    │   ├── RunOver                 state
    │   ├── QuotaSpent              wait_s
    │   ├── BudgetSpent
    │   ├── ScheduleRefused
    │   ├── SearchUnavailable
    │   ├── SearchBusy              wait_s
    │   ├── KeyReused               key
    │   ├── AccountRefused
    │   ├── NotSignedIn
    │   ├── SignInRefused
    │   ├── ProviderUnreachable     why
    │   ├── ShareRefused
    │   ├── SubscriptionRefused
    │   ├── PasswordWrong
    │   ├── Forbidden               by, action
    │   ├── LineageIncomplete       missing
    │   ├── RightsRefused           problems
    │   ├── ReleaseRefused
    │   └── DeliveryFailed
    └── SettingsInvalid

An error carries a sentence for a person (`message`) and what that person can do now (`next_step`). It can be
pickled, so that a task in another process can raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal


class OnmodelError(Exception):
    """An error a person is meant to read: `str()` is the message, `next_step` what to do about it."""

    message: str
    next_step: str

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[OnmodelError], args: tuple[Any, ...], state: dict[str, Any]) -> OnmodelError:
    """Subclasses have initialisers of their own, which pickle would call with the message alone."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class StoreError(OnmodelError):
    """Something in what is stored, or in where it is stored, is not as it must be."""


class PlaceInvalid(StoreError):
    """A URL of a blob store or a library that names no usable place."""


class NotASha256(StoreError, ValueError):
    """A blob was asked for by something other than 64 lower-case hex digits."""

    def __init__(self, given: str) -> None:
        super().__init__(f"{given[:80]!r} is not a sha256", "Give the 64 lower-case hex digits that `put` returned.")


class BlobMissing(StoreError):
    """The store holds no blob of this sha256."""

    def __init__(self, sha256: str, where: str) -> None:
        self.sha256 = sha256
        super().__init__(
            f"blob {sha256} is not in {where}",
            "Check that the blob store in the settings is the one the database was written with; "
            "if it is, restore the blob from a backup or import its source again.",
        )


class PictureRemoved(StoreError):
    """The picture's bytes are gone, as a policy asks; all else that is known of it stays."""

    def __init__(self, removed_at: datetime, policy: str) -> None:
        self.removed_at, self.policy = removed_at, policy
        super().__init__(
            f"the picture was removed on {removed_at.date().isoformat()} by the retention policy ({policy})",
            "Its lineage, checks and decisions stay; ask for it again to have it made anew.",
        )


class BlobCorrupt(StoreError):
    """What is stored under a key does not have the sha256 that the key names."""

    def __init__(self, key: str, expected: str, found: str, where: str = "the blob store") -> None:
        self.key = key
        self.expected = expected
        self.found = found
        super().__init__(
            f"{key} in {where} is damaged: expected sha256 {expected}, found {found}",
            "Import its source again (a put repairs a damaged blob) or restore the blob from a backup.",
        )


class BlobStoreUnreachable(StoreError):
    """The blob store cannot be used now: no such place, no permission, no answer, no room."""


class SourceUnreachable(StoreError):
    """The library's folder or bucket cannot be read now."""


class SourceObjectMissing(StoreError):
    """The library has no object of this key."""

    def __init__(self, key: str, shown: str, where: str) -> None:
        self.key = key
        super().__init__(f"{shown} is not in {where}", "List the library again: the object was moved or deleted.")


class SourceObjectTooBig(StoreError):
    """An object of the library is over the byte limit, and was not downloaded."""

    def __init__(self, key: str, shown: str, size_bytes: int, max_bytes: int) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes
        super().__init__(
            f"{shown} has {size_bytes} bytes or more, over the limit of {max_bytes}",
            "Put a smaller rendition of the picture into the library.",
        )


class SourceKeyRefused(StoreError):
    """A key that would be read from outside the library's folder, or that names no file."""

    def __init__(self, key: str, shown: str, why: str) -> None:
        self.key = key
        super().__init__(f"{shown} is refused: {why}", "Use a path relative to the library, inside the library.")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file that a person wrote: `line` is 1-based, `field` a dotted path such as
    `references[2].licence.until` (empty where the whole file is meant), `message` a sentence."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field + ': ' if self.field else ''}{self.message}"


class FileInvalid(StoreError):
    """A file that a person wrote, with problems; `problems` has all of them, in the order of their lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)), "Correct the lines named and run the command again.")


class LibraryFileInvalid(FileInvalid):
    """A library.yaml with problems."""


class BriefInvalid(FileInvalid):
    """A campaign brief with problems."""


RefusalReason = Literal[
    "empty",
    "too_many_bytes",
    "not_a_picture",
    "format_not_allowed",
    "too_many_pixels",
    "too_small",
    "too_many_frames",
    "decompression_bomb",
    "damaged",
]


class PictureRefused(StoreError):
    """Bytes that will not be used as a picture; `reason` is a stable code."""

    def __init__(self, reason: RefusalReason, message: str, next_step: str) -> None:
        self.reason: RefusalReason = reason
        super().__init__(message, next_step)


class DatabaseUnreachable(StoreError):
    """The database cannot be used now: no server, no permission, no answer, or a URL that names none."""


class DatabaseTooOld(StoreError):
    """A PostgreSQL, or a pgvector, older than Onmodel needs; `found` is its version."""

    def __init__(self, what: str, found: str, needed: str, how: str = "") -> None:
        self.found = found
        super().__init__(
            f"the database has {what} {found}, and Onmodel needs {needed} or newer",
            f"Upgrade {what}{how}, or unset ONMODEL_DATABASE__URL to use the embedded database.",
        )


class DatabaseTooNew(StoreError):
    """The database was migrated by a newer release of Onmodel."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        super().__init__(
            f"the database is at revision {revision}, which this release of Onmodel does not know",
            "Install the release that migrated it, or a newer one.",
        )


class VectorMissing(StoreError):
    """The PostgreSQL server has no pgvector, or this user may not create the extension."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"{where} cannot store embeddings: {why}",
            "Install pgvector on the server and let an administrator run `CREATE EXTENSION vector` in the database, "
            "or unset ONMODEL_DATABASE__URL to use the embedded database.",
        )


class NotFound(StoreError):
    """Nothing in the database has this id, name or prefix."""

    def __init__(self, what: str, asked: str, next_step: str = "") -> None:
        self.what = what
        self.asked = asked
        super().__init__(
            f"there is no {what} {asked[:80]}", next_step or "Check the id; `onmodel review list` shows ids."
        )


class Ambiguous(StoreError):
    """A name, or the beginning of an id, that several things share; `candidates` say which."""

    def __init__(
        self, what: str, asked: str, candidates: Sequence[str], next_step: str = "Give more letters of the id."
    ) -> None:
        self.asked = asked
        self.candidates = tuple(candidates)
        super().__init__(
            f"{asked} could be any of {len(self.candidates)} {what}s: {', '.join(self.candidates)}",
            next_step,
        )


class TransitionRefused(StoreError):
    """The state machine has no such event in this state."""

    def __init__(self, current: str, event: str) -> None:
        self.current = current
        self.event = event
        super().__init__(f"an asset that is {current} cannot be given: {event}", "Look at it again: it has moved on.")


class StaleVersion(StoreError):
    """A decision on something other than what is there now: another picture, or a row changed since."""

    def __init__(self, what: str, expected: str, found: str) -> None:
        self.expected = expected
        self.found = found
        super().__init__(
            f"the {what} that was looked at is {expected}, and the current one is {found}",
            "Look at the current version, then decide again.",
        )


class StageRefused(StoreError):
    """A decision at a stage that the asset does not wait at, or at none where it waits at several; `waiting` says where."""

    def __init__(self, asked: str | None, waiting: Sequence[str]) -> None:
        self.asked = asked
        self.waiting = tuple(waiting)
        where = " and ".join(self.waiting) or "none"
        told = (
            f"it waits at several stages: {where}"
            if asked is None
            else f"it does not wait at {asked[:80]}, but at {where}"
        )
        super().__init__(f"this needs the stage that it is decided at: {told}", "Name one of the stages it waits at.")


class FourEyes(StoreError):
    """One person may not both ask for a picture and approve it, nor fill two stages, nor be both of two."""

    def __init__(self, by: str, why: str, action: str = "approve this asset") -> None:
        self.by = by
        super().__init__(f"{by} may not {action}: {why}", "Ask somebody else.")


class ReasonMissing(StoreError):
    """Whatever is not an approval needs a reason that the maker can act on."""

    def __init__(self, action: str) -> None:
        super().__init__(f"to {action} needs a reason", "Say in a sentence what is wrong.")


class RemarkRefused(StoreError):
    """A comment that cannot stand as it is: empty, too long, a region outside the picture, another's words."""


class RetakeRefused(StoreError):
    """An asset that is not made anew: nothing changes, or it was made anew as often as its campaign allows."""


class RunOver(StoreError):
    """A run that has ended already: there is nothing left to cancel."""

    def __init__(self, state: str) -> None:
        self.state = state
        super().__init__(f"the run has {state} already", "What it made is in review; reject what is not wanted.")


class QuotaSpent(StoreError):
    """More pictures than somebody, or a brand, may ask for within a day."""

    def __init__(self, whose: str, asked: int, left: int, most: int, wait_s: int) -> None:
        self.wait_s = wait_s  # until enough of what was asked for is a day old
        super().__init__(
            f"{asked} pictures are more than {whose} has left: {left} of {most} within a day",
            f"Ask for fewer, or again in {wait_s} seconds.",
        )


class BudgetSpent(StoreError):
    """A campaign that would use more than its brief allows."""

    def __init__(self, more: str, budget: str, to_make: int) -> None:
        super().__init__(
            f"with {to_make} new pictures it would use {more}: its budget is {budget}",
            "Ask for fewer pictures, or raise the budget in the brief.",
        )


class SearchUnavailable(StoreError):
    """What reads words and pictures, to find references by them, is not there."""


class SearchBusy(StoreError):
    """More searches at once than are read at once."""

    def __init__(self, wait_s: int) -> None:
        self.wait_s = wait_s
        super().__init__("too many searches at once", f"Again in {wait_s} seconds.")


class ScheduleRefused(StoreError):
    """A campaign that cannot be scheduled now."""


class KeyReused(StoreError):
    """An Idempotency-Key that came with another request before."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(
            f"the idempotency key {key[:80]} came with another request", "Make a new key for each request."
        )


class AccountRefused(StoreError):
    """A person, role or key that cannot be as it was asked for."""


class NotSignedIn(StoreError):
    """Nobody is known by this link, session or key, or nobody any more."""


class SignInRefused(StoreError):
    """Somebody whom the company's sign-in knows, and who is let in here by nothing that it says of them."""


class ProviderUnreachable(StoreError):
    """The company's sign-in cannot be used now: no answer, or one that makes no sense. `why` is for who runs Onmodel."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(
            "the company's sign-in cannot be used now",
            "Try again in a moment, or ask an admin for a link that signs you in.",
        )


class ShareRefused(StoreError):
    """A share link that cannot be as it was asked for."""


class SubscriptionRefused(StoreError):
    """A subscription that cannot be as it was asked for."""


class PasswordWrong(StoreError):
    """A share link's password is missing or another."""


class Forbidden(StoreError):
    """Somebody who is known, and may not do this here."""

    def __init__(self, by: str, action: str) -> None:
        self.by = by
        self.action = action
        super().__init__(f"{by} may not {action} here", "Ask an admin for the role that it takes.")


class LineageIncomplete(StoreError):
    """A picture that cannot say where it came from; `missing` names the fields."""

    def __init__(self, what: str, missing: Sequence[str]) -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"the lineage of {what} lacks {', '.join(self.missing)}",
            "Run the campaign again: the picture is completed or made anew.",
        )


class RightsRefused(StoreError):
    """References that may not be used; `problems` has one sentence for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems), "Use other references, or renew the licence in library.yaml.")


class ReleaseRefused(StoreError):
    """An asset that is not approved at every stage, or whose availability forbids a release."""


class DeliveryFailed(StoreError):
    """A rendition could not be written to where it was to go; nothing was marked as released."""


class SettingsInvalid(OnmodelError):
    """An environment variable that cannot be what it says; names the variables, never their values."""
