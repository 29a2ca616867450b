"""How the page looks: fonts of the system, calm colours, the script and the style sheet of ``assets``."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

_ASSETS = Path(__file__).parents[1] / "assets"

TITLE = "What in this picture speaks for the class?"
"""Title of the page."""


def theme() -> gr.themes.Base:
    """Returns a theme whose fonts are the system's: nothing is fetched for it."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        button_primary_background_fill="#2b5f8f",
        button_primary_background_fill_hover="#244f78",
        body_text_color_subdued="#52606f",
        body_text_color_subdued_dark="#a9b4c2",
        block_info_text_color="#52606f",
    )


def css() -> str:
    """Returns the style sheet; Gradio puts its own container before every selector."""
    return _asset("page.css")


def head() -> str:
    """Returns the script, and what is different on a phone (inside a media query Gradio's prefix hits nothing)."""
    return f"<style>{_asset('phone.css')}</style><script>{_asset('page.js')}</script>"


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
