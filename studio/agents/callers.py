"""Whose key a tool works with, and that it is an agent's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from mcp.server.mcpserver import Context
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from studio.client import Client, ClientError, Me

OpenClient = Callable[[Context], AbstractContextManager[Client]]
HERE = "http://127.0.0.1:8400"
MAKE_ONE = "`onmodel keys make NAME --owner HANDLE --agent --scope view --scope comment --scope produce --scope assign` makes one."


class DoorSettings(BaseSettings):
    """ONMODEL_ADDRESS and ONMODEL_KEY: which API, and by stdio with whose key. By HTTP each caller sends their own."""

    model_config = SettingsConfigDict(env_prefix="ONMODEL_", frozen=True, extra="ignore")
    address: str = HERE
    key: SecretStr | None = None


class NotAnAgent(ClientError):
    """A key that is known and is not an agent's: with it an agent could do what only people and their programs may."""

    def __init__(self, actor: str) -> None:
        super().__init__(f"the key of {actor} is not an agent's", MAKE_ONE)


def need_agent(client: Client) -> Me:
    """Who calls. NotAnAgent; what the API refuses."""
    me = client.me()
    if not me.is_agent:
        raise NotAnAgent(me.actor)
    return me


def one_for_all(client: Client) -> OpenClient:
    """By stdio: one process has one caller."""

    @contextmanager
    def opened(ctx: Context) -> Iterator[Client]:
        yield client

    return opened


def each_their_own(address: str) -> OpenClient:
    """By HTTP: the key of the very request that the tool is called by; nothing of it is kept."""

    @contextmanager
    def opened(ctx: Context) -> Iterator[Client]:
        secret = bearer((ctx.headers or {}).get("authorization", ""))
        if secret is None:
            raise ClientError("this call came without a key", MAKE_ONE)
        with Client(address, secret) as client:
            yield client

    return opened


def caller_of(ctx: Context) -> str:
    """Who calls a tool, by what cannot be turned back into their key; by stdio it is always the same."""
    return hashlib.sha256((ctx.headers or {}).get("authorization", "").encode()).hexdigest()


def bearer(header: str) -> str | None:
    """The key in an Authorization header; None where there is none that could be one."""
    scheme, _, secret = header.partition(" ")
    secret = secret.strip()
    well = scheme.casefold() == "bearer" and secret and secret.isascii() and secret.isprintable() and " " not in secret
    return secret if well else None
