"""Every pair of state and event, against an expectation written as the sentences of the design."""

from __future__ import annotations

from itertools import product

import pytest

from asset_store.errors import TransitionRefused
from asset_store.reviewing.states import Availability, AvailabilityEvent, ReviewEvent, ReviewState, next_state

REVIEW = """
draft             submit           checking
draft             retake           draft
checking          checks passed    in review
checking          checks failed    check failed
check failed      waive            in review
check failed      retake           draft
in review         endorse          in review
in review         advance          in review
in review         approve          approved
in review         request changes  changes requested
in review         reject           rejected
changes requested retake           draft
changes requested reject           rejected
changes requested reopen           in review
in review         take back        in review
changes requested take back        in review
rejected          take back        in review
approved          take back        in review
rejected          reopen           in review
approved          reopen           in review
"""
AVAILABILITY = """
unreleased        release          released
released          suspend          suspended
released          expire           expired
released          supersede        superseded
suspended         reinstate        released
suspended         withdraw         withdrawn
suspended         expire           expired
"""


def sentences(table: str) -> dict[tuple[str, str], str]:
    rows = [(line[:18].strip(), line[18:35].strip(), line[35:].strip()) for line in table.strip().splitlines()]
    return {(state, event): after for state, event, after in rows}


@pytest.mark.parametrize(("state", "event"), list(product(ReviewState, ReviewEvent)))
def test_review_goes_where_the_design_says_and_nowhere_else(state: ReviewState, event: ReviewEvent) -> None:
    expected = sentences(REVIEW).get((state.value, event.value))
    if expected is None:
        with pytest.raises(TransitionRefused) as refused:
            next_state(state, event)
        assert (refused.value.current, refused.value.event) == (state, event)
    else:
        assert next_state(state, event) == expected


@pytest.mark.parametrize(("state", "event"), list(product(Availability, AvailabilityEvent)))
def test_availability_goes_where_the_design_says_and_nowhere_else(
    state: Availability, event: AvailabilityEvent
) -> None:
    expected = sentences(AVAILABILITY).get((state.value, event.value))
    if expected is None:
        with pytest.raises(TransitionRefused):
            next_state(state, event)
    else:
        assert next_state(state, event) == expected


def test_the_expectation_is_read_whole() -> None:
    for table, states, events in ((REVIEW, ReviewState, ReviewEvent), (AVAILABILITY, Availability, AvailabilityEvent)):
        read = sentences(table)
        assert len(read) == len(table.strip().splitlines())
        assert all(s in set(states) and e in set(events) and a in set(states) for (s, e), a in read.items())


@pytest.mark.parametrize("event", AvailabilityEvent)
@pytest.mark.parametrize("state", [Availability.WITHDRAWN, Availability.EXPIRED, Availability.SUPERSEDED])
def test_nothing_leaves_an_end(state: Availability, event: AvailabilityEvent) -> None:
    with pytest.raises(TransitionRefused):
        next_state(state, event)
