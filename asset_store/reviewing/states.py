"""The states of an asset and the events that move it: one table for review, one for availability.

This module knows no tables, because the tables take their enums from it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import overload

from asset_store.errors import TransitionRefused


class ReviewState(enum.StrEnum):
    DRAFT = "draft"
    CHECKING = "checking"
    CHECK_FAILED = "check failed"
    IN_REVIEW = "in review"
    CHANGES_REQUESTED = "changes requested"
    REJECTED = "rejected"
    APPROVED = "approved"


class ReviewEvent(enum.StrEnum):
    SUBMIT = "submit"
    CHECKS_PASSED = "checks passed"
    CHECKS_FAILED = "checks failed"
    WAIVE = "waive"
    ENDORSE = "endorse"  # approved where more approvals of the same round are needed
    ADVANCE = "advance"  # the last approval of a round that is not the last
    APPROVE = "approve"  # the last approval of the last round
    REQUEST_CHANGES = "request changes"
    REJECT = "reject"
    RETAKE = "retake"
    REOPEN = "reopen"
    TAKE_BACK = "take back"


class Availability(enum.StrEnum):
    UNRELEASED = "unreleased"
    RELEASED = "released"
    SUSPENDED = "suspended"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


class AvailabilityEvent(enum.StrEnum):
    RELEASE = "release"
    SUSPEND = "suspend"
    REINSTATE = "reinstate"
    WITHDRAW = "withdraw"
    EXPIRE = "expire"
    SUPERSEDE = "supersede"


REVIEW_TRANSITIONS: Mapping[tuple[ReviewState, ReviewEvent], ReviewState] = MappingProxyType(
    {
        (ReviewState.DRAFT, ReviewEvent.SUBMIT): ReviewState.CHECKING,
        (ReviewState.DRAFT, ReviewEvent.RETAKE): ReviewState.DRAFT,  # where the job of a retake failed or was cancelled
        (ReviewState.CHECKING, ReviewEvent.CHECKS_PASSED): ReviewState.IN_REVIEW,
        (ReviewState.CHECKING, ReviewEvent.CHECKS_FAILED): ReviewState.CHECK_FAILED,
        (ReviewState.CHECK_FAILED, ReviewEvent.WAIVE): ReviewState.IN_REVIEW,
        (ReviewState.CHECK_FAILED, ReviewEvent.RETAKE): ReviewState.DRAFT,
        (ReviewState.IN_REVIEW, ReviewEvent.ENDORSE): ReviewState.IN_REVIEW,
        (ReviewState.IN_REVIEW, ReviewEvent.ADVANCE): ReviewState.IN_REVIEW,
        (ReviewState.IN_REVIEW, ReviewEvent.APPROVE): ReviewState.APPROVED,
        (ReviewState.IN_REVIEW, ReviewEvent.REQUEST_CHANGES): ReviewState.CHANGES_REQUESTED,
        (ReviewState.IN_REVIEW, ReviewEvent.REJECT): ReviewState.REJECTED,
        (ReviewState.CHANGES_REQUESTED, ReviewEvent.RETAKE): ReviewState.DRAFT,
        (ReviewState.CHANGES_REQUESTED, ReviewEvent.REJECT): ReviewState.REJECTED,
        (ReviewState.CHANGES_REQUESTED, ReviewEvent.REOPEN): ReviewState.IN_REVIEW,
        (ReviewState.IN_REVIEW, ReviewEvent.TAKE_BACK): ReviewState.IN_REVIEW,
        (ReviewState.CHANGES_REQUESTED, ReviewEvent.TAKE_BACK): ReviewState.IN_REVIEW,
        (ReviewState.REJECTED, ReviewEvent.TAKE_BACK): ReviewState.IN_REVIEW,
        (ReviewState.APPROVED, ReviewEvent.TAKE_BACK): ReviewState.IN_REVIEW,
        (ReviewState.REJECTED, ReviewEvent.REOPEN): ReviewState.IN_REVIEW,
        (ReviewState.APPROVED, ReviewEvent.REOPEN): ReviewState.IN_REVIEW,
    }
)

AVAILABILITY_TRANSITIONS: Mapping[tuple[Availability, AvailabilityEvent], Availability] = MappingProxyType(
    {
        (Availability.UNRELEASED, AvailabilityEvent.RELEASE): Availability.RELEASED,
        (Availability.RELEASED, AvailabilityEvent.SUSPEND): Availability.SUSPENDED,
        (Availability.RELEASED, AvailabilityEvent.EXPIRE): Availability.EXPIRED,
        (Availability.RELEASED, AvailabilityEvent.SUPERSEDE): Availability.SUPERSEDED,
        (Availability.SUSPENDED, AvailabilityEvent.REINSTATE): Availability.RELEASED,
        (Availability.SUSPENDED, AvailabilityEvent.WITHDRAW): Availability.WITHDRAWN,
        (Availability.SUSPENDED, AvailabilityEvent.EXPIRE): Availability.EXPIRED,
    }
)


@overload
def next_state(current: ReviewState, event: ReviewEvent) -> ReviewState: ...
@overload
def next_state(current: Availability, event: AvailabilityEvent) -> Availability: ...
def next_state(
    current: ReviewState | Availability, event: ReviewEvent | AvailabilityEvent
) -> ReviewState | Availability:
    """The state after `event`; TransitionRefused where the table has no such pair."""
    found: ReviewState | Availability | None
    if isinstance(current, ReviewState) and isinstance(event, ReviewEvent):
        found = REVIEW_TRANSITIONS.get((current, event))
    elif isinstance(current, Availability) and isinstance(event, AvailabilityEvent):
        found = AVAILABILITY_TRANSITIONS.get((current, event))
    else:
        found = None
    if found is None:
        raise TransitionRefused(current, event)
    return found
