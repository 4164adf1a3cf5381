"""The API at an address, as the client's tests have it."""

from tests.studio.api.conftest import door
from tests.studio.client.conftest import far

__all__ = ["door", "far"]
