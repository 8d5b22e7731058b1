"""Who may use the server of the page: the pages that it serves itself."""

import asyncio
from typing import Any

import pytest

from adaspa_cli.ui.guard import Guard


def status(**headers: str) -> int:
    """What a request is answered with; 200 where it is let through."""
    sent: list[dict[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Guard(app)({"type": "http", "headers": pairs}, None, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "localhost:8000", "[::1]:7860"])
def test_own_pages_are_answered(host: str) -> None:
    assert status(host=host) == 200
    assert status(host=host, origin=f"http://{host}") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},  # a name that leads to this machine
        {"host": "evil.example:7860", "origin": "http://evil.example:7860"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "127.0.0.1:7860", "origin": "https://evil.example"},
        {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:3000"},
        {"host": "127.0.0.1:7860", "origin": "null"},
        {"host": "[127.0.0.1"},
        {},
    ],
    ids=str,
)
def test_other_sites_are_refused(headers: dict[str, str]) -> None:
    assert status(**headers) == 403
