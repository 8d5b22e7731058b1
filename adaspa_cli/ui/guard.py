"""Refuses requests that pages of other sites send to the server of the page.

A server that only this machine reaches is reached by every site that its browser shows: by the address, or by a name of
the site's own that leads to this machine (DNS rebinding), with which the browser takes the server for the site.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

_OWN = ("127.0.0.1", "localhost", "::1")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware: lets through what names this machine, and comes from its own pages or from no page."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_own(dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        head = {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
        await send(head)
        await send({"type": "http.response.body", "body": b"only for pages of this machine"})


def is_own(headers: MutableMapping[bytes, bytes]) -> bool:
    """Whether a request is for this machine by its name, and sent by one of the server's own pages or by none."""
    host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
    try:
        return urlsplit(f"//{host}").hostname in _OWN and (not origin or urlsplit(origin).netloc == host)
    except ValueError:  # brackets that do not match
        return False
