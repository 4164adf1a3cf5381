"""Everything that a client's call may fail with.

    ClientError                     message, next_step
    ├── Unreachable                 no answer came, and the tries are spent
    ├── Unclear                     an answer that /v1 does not give: another server, or a proxy's page
    ├── WaitedTooLong               a run goes on, and whoever waited would wait no longer
    └── Refusal                     problem: what the server said
        ├── Refused                 the request cannot be so (400, 413, 422, 428)
        ├── NotSignedIn             the key is not known, or no longer (401)
        ├── Forbidden               the key may not do this (403)
        ├── NotFound                there is no such thing, or the key may not see it (404)
        ├── Conflict                it is not in a state for this (409)
        ├── Stale                   it was changed since it was seen (412)
        ├── TooMany                 retry_after_s; too many requests (429)
        │   └── QuotaSpent          the day's pictures are spent
        └── ServerFailed            something went wrong there (500 and above)
            └── Unavailable         a part that it needs cannot be reached now (503)

`str()` is a sentence for a person, `next_step` what to do about it. `problem.kind` names the server's own error, such as
`RightsRefused`, for who has to tell two conflicts apart.
"""

from __future__ import annotations

from studio.client.models import Problem


class ClientError(Exception):
    """A call that came to nothing: `str()` says why, `next_step` what to do about it."""

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message, self.next_step = message, next_step


class Unreachable(ClientError):
    """No answer came, however often it was tried."""


class Unclear(ClientError):
    """An answer that /v1 does not give."""


class WaitedTooLong(ClientError):
    """The run goes on."""


class Refusal(ClientError):
    """The server said no; `problem` is how."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title, problem.next_step)
        self.problem = problem


class Refused(Refusal):
    """The request cannot be so."""


class NotSignedIn(Refusal):
    """The key is not known, or no longer."""


class Forbidden(Refusal):
    """The key may not do this here."""


class NotFound(Refusal):
    """There is no such thing, or the key may not see it."""


class Conflict(Refusal):
    """It is not in a state for this."""


class Stale(Refusal):
    """It was changed since it was seen: look again."""


class TooMany(Refusal):
    """Too many requests; `retry_after_s` says when to come again."""

    def __init__(self, problem: Problem, retry_after_s: float) -> None:
        super().__init__(problem)
        self.retry_after_s = retry_after_s


class QuotaSpent(TooMany):
    """More pictures than the brand, or the key, has left of the day."""


class ServerFailed(Refusal):
    """Something went wrong there; the title has the number under which it is in the log."""


class Unavailable(ServerFailed):
    """A part that the server needs cannot be reached now."""


BY_STATUS: dict[int, type[Refusal]] = {
    401: NotSignedIn,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: Stale,
    503: Unavailable,
}


def refusal_of(problem: Problem, retry_after_s: float) -> Refusal:
    """The error that a problem is raised as."""
    if problem.status == 429:
        return (QuotaSpent if problem.kind == "QuotaSpent" else TooMany)(problem, retry_after_s)
    usual: type[Refusal] = ServerFailed if problem.status >= 500 else Refused
    return BY_STATUS.get(problem.status, usual)(problem)
