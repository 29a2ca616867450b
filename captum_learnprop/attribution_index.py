"""Pages of thumbnails that show what ``learnprop attribute`` wrote: plain HTML that opens without a server.

Thumbnails are in the pages themselves, so that a page is one file and ten thousand images are fifty of them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import islice
from math import ceil
from pathlib import Path
from urllib.parse import quote

from captum_learnprop.attribution_predictions import Prediction
from captum_learnprop.files import printable, write_text
from captum_learnprop.html_page import html_page

INDEX, PAGES = "index.html", "pages"

PER_PAGE = 200
"""Images on a page: about a megabyte."""


@dataclass(frozen=True)
class Card:
    """An image on a page.

    Attributes:
        id: Its id.
        prediction: What the model said of it.
        thumbnail: A small JPEG; empty for none.
        link: Path of the overlay below the output folder, or None.
    """

    id: str
    prediction: Prediction
    thumbnail: bytes
    link: str | None = None


def write_index(folder: Path, cards: Iterable[Card], count: int, *, title: str, about: str = "") -> Path:
    """Writes ``index.html``, and what does not fit on it to ``pages/2.html`` and on; returns the first.

    Args:
        folder: The output folder; pages of an earlier run that are no longer needed are deleted.
        cards: The images, in order; read as a stream.
        count: How many there are.
        title: Headline.
        about: A sentence below it.

    Raises:
        WriteError: A page could not be written.
    """
    number = max(1, ceil(count / PER_PAGE))
    cards = iter(cards)
    for page in range(1, number + 1):
        shown = "\n".join(_card(card, _up(page)) for card in islice(cards, PER_PAGE))
        write_text(folder / _name(page), _page(page, number, shown, title, about))
    for old in (folder / PAGES).glob("*.html"):
        if old.stem.isdecimal() and int(old.stem) > number:
            old.unlink(missing_ok=True)
    return folder / INDEX


def _name(page: int) -> str:
    return INDEX if page == 1 else f"{PAGES}/{page}.html"


def _up(page: int) -> str:
    return "" if page == 1 else "../"


def _card(card: Card, up: str) -> str:
    name = escape(printable(card.id))
    picture = ""
    if card.thumbnail:
        data = base64.b64encode(card.thumbnail).decode("ascii")
        picture = f'<img loading="lazy" alt="map of {name}" src="data:image/jpeg;base64,{data}">'
    if card.link is not None:
        # Names may hold anything, and bytes that are no text come back from the disk as half characters.
        address = escape(up + quote(card.link.encode("utf-8", "surrogateescape")))
        picture = f'<a href="{address}">{picture or name}</a>'
    lines = "".join(f"<br>{escape(line)}" for line in _said(card.prediction))
    return f"<figure>{picture}<figcaption><b>{name}</b>{lines}</figcaption></figure>"


def _said(prediction: Prediction) -> Iterator[str]:
    yield f"{printable(prediction.predicted_name)} {prediction.probability:.0%}"
    if prediction.target != prediction.predicted:
        yield f"map of {printable(prediction.target_name)} {prediction.target_probability:.0%}"


def _page(page: int, number: int, shown: str, title: str, about: str) -> str:
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(about)}</p>" if about else "", _ways(page, number)]
    body = "\n".join([*parts, f"<main>\n{shown}\n</main>", _ways(page, number)])
    return html_page(title, _STYLE, body)


def _ways(page: int, number: int) -> str:
    """Returns the links to other pages."""
    if number == 1:
        return ""
    near = sorted({1, number, *(each for each in range(page - 2, page + 3) if 1 <= each <= number)})
    links = [
        f"<b>{each}</b>" if each == page else f'<a href="{_up(page)}{_name(each)}">{each}</a>' for each in near
    ]  # fmt: skip
    return f"<nav>page {' '.join(links)} of {number}</nav>"


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; color: #222; margin: 1.5em auto; max-width: 1500px; padding: 0 1em; }
h1 { font-size: 1.4em; } nav { margin: 1em 0; } nav a, nav b { padding: .2em .5em; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 14px; }
figure { margin: 0; } img { display: block; max-width: 100%; min-height: 32px; }
figcaption { font-size: 12px; overflow-wrap: anywhere; }
"""
