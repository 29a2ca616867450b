"""The server of the page: this machine only, unless a password guards it; nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from captum_learnprop.errors import LearnpropError
from captum_learnprop.web.guard import LOOPBACK, Guard
from captum_learnprop.web.offered import Offer
from captum_learnprop.web.page.build import build
from captum_learnprop.web.page.look import css, head, theme
from captum_learnprop.web.server import Server
from captum_learnprop.web.uploads import MAX_BYTES
from captum_learnprop.web.visits import Visits

_SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_SHARE": "False"}
"""What Gradio reads from the environment: no telemetry, no question to a hub, no tunnel."""


@contextmanager
def served(server: Server, offer: Offer) -> Iterator[str]:
    """Serves the page for as long as the block runs, and gives its address.

    Files of visitors lie in a folder of their own, which is removed in the end.

    Raises:
        LearnpropError: The address or the port cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="learnprop-web-") as folder:
        os.environ.update(_SETTINGS, GRADIO_TEMP_DIR=str(Path(folder) / "uploads"))
        (Path(folder) / "visits").mkdir()
        page = build(offer, Visits(offer, Path(folder) / "visits"), server.images)
        try:
            _, address, _ = _launched(page, server)
        except OSError as error:
            raise LearnpropError(f"cannot listen on {server.host}: {error}; choose another --port") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def _launched(page: gr.Blocks, server: Server) -> tuple[object, str, object]:
    launched: tuple[object, str, object] = page.launch(
        server_name=server.host,
        server_port=server.port,
        auth=None if server.password is None else server.lets_in,
        auth_message="Any name, and the password that the page was started with.",
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=64,
        show_error=True,
        theme=theme(),
        css=css(),
        head=head(),
        app_kwargs={"middleware": [Middleware(Guard, hosts=LOOPBACK if server.local else None)]},
    )
    return launched
