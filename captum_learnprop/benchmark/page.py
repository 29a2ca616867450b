"""The benchmark's results as one HTML page: what they say, tables, figures and maps; no network and no scripts."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from captum_learnprop.benchmark.report import PAIRED, READING, Items, Part, Section, Table, failures, places, sections
from captum_learnprop.benchmark.scorecard import RANDOMISATION, in_table_order, score
from captum_learnprop.benchmark.summary import Row
from captum_learnprop.benchmark.verdict import verdict
from captum_learnprop.errors import LearnpropError
from captum_learnprop.html_page import html_page
from captum_learnprop.tables import html

Picture = bytes | Path
"""An image, PNG or JPEG: its content, or the file."""

OPEN_GALLERIES = 1
"""Number of pictures of maps that are shown at once; the others open by a click."""


def to_html(
    rows: Sequence[Row],
    *,
    about: Mapping[str, Any],
    figures: Sequence[tuple[str, Picture]] = (),
    galleries: Sequence[tuple[str, Picture]] = (),
    caveats: Sequence[str] = (),
) -> str:
    """Returns the page, a whole file; names are shown as they are and never read as HTML.

    Args:
        rows: The results, from `summarise`.
        about: How they were made, by name: texts, numbers, sequences and mappings of them.
        figures: Pictures with their titles, shown before the tables.
        galleries: Pictures of maps side by side with their titles, from `gallery.draw_gallery`.
        caveats: What must be known before any figure is believed, such as that splits share objects.

    Raises:
        LearnpropError: A picture cannot be read, or is neither PNG nor JPEG.
    """
    own, others = _split(rows)
    body = [
        "<h1>Which method tells the truth about the net?</h1>",
        _links(own, bool(galleries)),
        *_verdicts(rows, caveats),
        *_reading(rows, apart=not caveats),
        *(f"<h2>{escape(title)}</h2>\n{_picture(picture, title)}" for title, picture in figures),
        *(_section(one) for one in others[:1]),  # the overview
        *(_section(one, f"place{number}") for number, one in enumerate(own)),
        *_galleries(galleries),
        *(_section(one) for one in others[1:]),
        *_failed(rows),
        f'<h2 id="made">How it was made</h2>\n{_facts(about)}',
    ]
    return html_page("learnprop evaluate", _STYLE, "\n".join(part for part in body if part))


def _split(rows: Sequence[Row]) -> tuple[list[Section], list[Section]]:
    """Returns the sections of single nets and scenes, and the others."""
    titles = {f"{model}, {scenes}" for model, scenes in places(rows)}
    every = sections(rows)
    return [one for one in every if one.title in titles], [one for one in every if one.title not in titles]


def _links(own: Sequence[Section], maps: bool) -> str:
    named = [(f"place{number}", section.title) for number, section in enumerate(own)]
    links = [
        ("said", "What it says"),
        ("read", "How to read it"),
        *named,
        *[("maps", "Maps")] * maps,
        ("made", "How it was made"),
    ]
    return "<nav>" + " ".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in links) + "</nav>"


def _verdicts(rows: Sequence[Row], caveats: Sequence[str]) -> list[str]:
    parts = ['<h2 id="said">What it says</h2>']
    parts += [f'<p class="caveat">To bear in mind: {escape(text)}.</p>' for text in caveats]
    for model, scenes in places(rows):
        room = [row for row in rows if (row.model, row.scenes) == (model, scenes)]
        asked = max((one.samples for row in room for one in row.estimates.values()), default=0)
        heading = f"{escape(model)}, {escape(scenes)} <small>({asked} questions)</small>"
        found = verdict(room)
        others = f"<p>Best by other scores:</p>{_items(found.others)}" if found.others else ""
        sentences = _inline(" ".join(found.sentences))
        parts.append(f'<div class="said"><h3>{heading}</h3>\n<p>{sentences}</p>{others}</div>')
    return parts


def _reading(rows: Sequence[Row], *, apart: bool) -> list[str]:
    """Returns what the columns mean; for a reader who sees such a table for the first time.

    Args:
        rows: The results.
        apart: Whether splits share no objects, as far as is known.
    """
    names = in_table_order(name for row in rows for name in row.estimates)
    lines = [[name, _summary(name), "higher" if score(name).higher_is_better else "lower"] for name in names]
    lines += [
        ["passes", "Forward and backward passes through the net that one map takes.", "lower"],
        ["ms / image", "Milliseconds that one map takes on the machine below.", "lower"],
        ["treatment", "Sign and smoothing of the maps, chosen on other scenes.", ""],
    ]
    asked = (
        "Every question is an image and a class that is in it: where is <i>this</i> object? The pixels of the object "
        "are known exactly. Each method answers with a map, and the scores say how well the map fits. Methods whose "
        'rules were trained are <span class="key">marked</span>'
        + ("; they never saw the objects that they are asked about." if apart else ".")
    )
    return [
        f'<h2 id="read">How to read it</h2>\n<p>{asked}</p>\n<p>{_inline(_ARROWS_READING)}</p>',
        f"<details><summary>What each score measures</summary>{_table(Table(_MEANING, lines))}</details>",
    ]


_ARROWS_READING = READING.replace("`^`", "↑").replace("`v`", "↓")

_MEANING = ("column", "what it is", "better")


def _summary(name: str) -> str:
    if name == RANDOMISATION:
        return "Likeness to the maps of the same net with random weights; a map that stays the same ignores the net."
    return score(name).metric.summary


def _section(section: Section, name: str = "") -> str:
    parts = []
    for part in section.parts:
        if not isinstance(part, Items):  # failures are told once, together
            parts.append(f"<p>{_inline(part)}</p>" if isinstance(part, str) else _table(part))
    if PAIRED in section.parts:
        paired = next(index for index, part in enumerate(parts) if part == f"<p>{_inline(PAIRED)}</p>")
        parts.insert(paired, "<h3>Are trained methods better?</h3>")
    if section.alike:
        alike = "".join(_part(part) for part in section.alike)
        parts.append(f"<details><summary>With all maps smoothed alike</summary>{alike}</details>")
    heading = f'<h2 id="{name}">' if name else "<h2>"
    return "\n".join([f"{heading}{escape(section.title)}</h2>", *parts])


def _part(part: Part) -> str:
    if isinstance(part, Table):
        return _table(part)
    return _items(part.texts) if isinstance(part, Items) else f"<p>{_inline(part)}</p>"


WIDE = 7
"""Number of columns from which errors stand below their numbers, so that more columns fit."""

COST = ("passes", "ms / image")
"""Columns that stand beside the name of the method."""


def _table(table: Table) -> str:
    order = sorted(range(len(table.head)), key=lambda column: (column > 0, table.head[column] not in COST))
    head = [re.sub(r" \^$", " ↑", re.sub(r" v$", " ↓", table.head[column])) for column in order]
    parts = _bold(html(head, [[line[column] for column in order] for line in table.lines])).split("<tr>")
    for number in table.learned:
        parts[number + 2] = f"\0{parts[number + 2]}"  # before the first is the table, before the second its head
    text = "<tr>".join(parts).replace("<tr>\0", '<tr class="learned">')
    if len(head) >= WIDE:
        text = re.sub(r" (± [^<]*)</td>", r"<small>\1</small></td>", text)
    return f'<div class="wide">{text}</div>'


def _items(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_inline(text)}</li>" for text in texts) + "</ul>"


def _failed(rows: Sequence[Row]) -> list[str]:
    parts = []
    for model, scenes in places(rows):
        found = failures([row for row in rows if (row.model, row.scenes) == (model, scenes)])
        if found.texts:
            parts.append(f"<h3>{escape(model)}, {escape(scenes)}</h3>\n{_items(found.texts)}")
    return ["<h2>What did not run, and why</h2>", *parts] if parts else []


def _galleries(galleries: Sequence[tuple[str, Picture]]) -> list[str]:
    if not galleries:
        return []
    parts = [f'<h2 id="maps">Maps side by side</h2>\n<p>{_GALLERY}</p>']
    for number, (title, picture) in enumerate(galleries):
        shown = " open" if number < OPEN_GALLERIES else ""
        parts.append(f"<details{shown}><summary>{escape(title)}</summary>{_picture(picture, title)}</details>")
    return parts


_GALLERY = (
    "The first questions, with the maps of all methods: red speaks for the class that is asked for, blue against it, "
    "and the bright line is the outline of the object. AP is the average precision of that very map; names of trained "
    "methods are red. Click on a question to open it."
)


def _facts(about: Mapping[str, Any]) -> str:
    lines = "".join(f"<dt>{escape(str(name))}</dt><dd>{_value(value)}</dd>" for name, value in about.items())
    return f"<dl>{lines}</dl>"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        known = {
            name: one for name, one in value.items() if one is not None and one is not False and one not in ([], "")
        }
        return "; ".join(f"{escape(str(name))} {_value(one)}" for name, one in known.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(one) for one in value)
    return escape(str(value))


def _inline(text: str) -> str:
    return _bold(re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)))


def _bold(text: str) -> str:
    return re.sub(r"\*\*([^*<>]+)\*\*", r"<b>\1</b>", text)


_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


def _picture(picture: Picture, title: str) -> str:
    try:
        data = picture.read_bytes() if isinstance(picture, Path) else picture
    except OSError as error:
        raise LearnpropError(f"cannot read the picture {title!r}: {error.strerror or error}") from error
    kind = next((kind for start, kind in _TYPES.items() if data.startswith(start)), None)
    if kind is None:
        raise LearnpropError(f"the picture {title!r} is neither PNG nor JPEG: save the figure with such a suffix")
    content = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(title)}" src="data:image/{kind};base64,{content}">'


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1500px; margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.7em; } h2 { margin-top: 2em; border-bottom: 1px solid #ddd; } h3 { margin-bottom: .3em; }
nav a { margin-right: 1.2em; } small { color: #666; font-weight: normal; }
.caveat { border-left: 4px solid #d9a000; padding: .4em 1em; background: #fff8e1; max-width: 60em; }
.said { background: #f6f4ee; padding: .4em 1.2em; margin: .8em 0; border-left: 4px solid #c8102e; }
.said p, .said li { max-width: 62em; } .said ul { margin-top: 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: .8em 0; }
th, td { text-align: left; vertical-align: top; padding: .2em .9em .2em 0; border-bottom: 1px solid #eee; }
th { border-bottom: 2px solid #999; position: sticky; top: 0; background: #fff; }
td small { display: block; font-size: 11px; white-space: nowrap; }
td:first-child { position: sticky; left: 0; background: #fff; font-weight: 500; min-width: 13em; }
tr.learned td, .key { background: #fdeef0; } tr:hover td { background: #eef4fb; }
img { max-width: 100%; } summary { cursor: pointer; margin: .4em 0; color: #1a4f8b; }
dt { font-weight: 600; margin-top: .5em; } dd { margin: 0; overflow-wrap: anywhere; }
"""
