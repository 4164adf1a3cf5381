"""An agent at the door, by the SDK's own client over a real pipe or real HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from tests.studio_home import ROOT

T = TypeVar("T")
COMMAND = ["-c", "from studio.cli.app import run; run()", "mcp"]


def environment(address: str, key: str | None) -> dict[str, str]:
    told = {**os.environ, "PYTHONPATH": str(ROOT), "ONMODEL_ADDRESS": address}
    return told if key is None else {**told, "ONMODEL_KEY": key}


def by_pipe(address: str, key: str, talk: Callable[[Client], Awaitable[T]]) -> T:
    """What an agent finds that starts `onmodel mcp` as a process."""

    async def connected() -> T:
        server = StdioServerParameters(command=sys.executable, args=COMMAND, env=environment(address, key), cwd=ROOT)
        async with Client(server, read_timeout_seconds=120) as client:
            return await talk(client)

    return asyncio.run(connected())


def by_http(url: str, key: str, talk: Callable[[Client], Awaitable[T]], mode: str = "auto") -> T:
    async def connected() -> T:
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=120) as http,
            Client(streamable_http_client(url, http_client=http), mode=mode) as client,
        ):
            return await talk(client)

    return asyncio.run(connected())


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured answer of a tool that is not refused."""
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    assert isinstance(answer.structured_content, dict)
    return answer.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error, answer.structured_content
    (told,) = answer.content
    assert isinstance(told, TextContent)
    return told.text


def pictures(answer: CallToolResult) -> dict[str, Image.Image]:
    """The pictures in an answer, by the words before each."""
    found: dict[str, Image.Image] = {}
    for before, block in zip(answer.content, answer.content[1:], strict=False):
        if isinstance(block, ImageContent):
            assert isinstance(before, TextContent)
            assert len(block.data) < 400_000
            found[before.text] = Image.open(io.BytesIO(base64.b64decode(block.data)))
    return found
