"""What stands between a browser and the page: who is answered, how large requests are, what a page may fetch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

PASSWORD = "LEARNPROP_WEB_PASSWORD"
"""The variable of the environment that may hold the password."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""What this machine calls itself: a page of another name that points here is not answered (DNS rebinding)."""

MOST_BYTES = 512 * 2**20
"""The largest request: many pictures at once."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""What the page may fetch: nothing from any other place."""

_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """An ASGI application around another.

    Args:
        app: What answers.
        hosts: Names by which it may be called; None for any.
        most_bytes: The largest request.
    """

    def __init__(self, app: App, hosts: tuple[str, ...] | None = LOOPBACK, most_bytes: int = MOST_BYTES) -> None:
        self.app, self.hosts, self.most_bytes = app, hosts, most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reason = self._refused({name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]})
        if reason is not None:
            await _answer(send, *reason)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, sent)

    def _refused(self, headers: dict[str, str]) -> tuple[int, str] | None:
        """Returns status and sentence of a request that is not answered."""
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts is not None and name not in self.hosts:
            return 421, "this page is for this machine: open it as http://127.0.0.1"
        length = headers.get("content-length")
        if length is None and "transfer-encoding" in headers:
            return 411, "a request must say how long it is"
        if length is not None and (not length.isdecimal() or int(length) > self.most_bytes):
            return 413, f"a request may have {self.most_bytes // 2**20} MB"
        return None


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
