"""Who is answered: this machine by its own names, requests of bounded size; and what a page may fetch."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from captum_learnprop.web.guard import LOOPBACK, Guard


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"the page"})


def ask(headers: dict[str, str], hosts: tuple[str, ...] | None = LOOPBACK) -> tuple[int, dict[str, str], str]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(Guard(_app, hosts, most_bytes=1000)(scope, receive, send))
    start, body = sent
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body["body"].decode()


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost", "[::1]:7860", "[::1]"])
def test_this_machine_is_answered(host: str) -> None:
    status, headers, body = ask({"host": host})
    assert (status, body) == (200, "the page")
    assert headers["content-type"] == "text/html"


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1.evil.example", "", "192.168.0.7:7860"])
def test_another_name_for_it_is_not(host: str) -> None:
    assert ask({"host": host})[0] == 421
    assert ask({"host": host}, hosts=None)[0] == 200


def test_a_page_fetches_from_here_alone() -> None:
    policy = ask({"host": "localhost"})[1]["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": "1000"}, 200),
        ({"content-length": "1001"}, 413),
        ({"content-length": "many"}, 413),
        ({"transfer-encoding": "chunked"}, 411),
    ],
)
def test_requests_are_bounded(headers: dict[str, str], status: int) -> None:
    assert ask({"host": "localhost", **headers})[0] == status


def test_other_protocols_pass() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
