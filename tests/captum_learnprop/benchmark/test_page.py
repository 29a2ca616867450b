"""The page of results: whole, of one piece, true to the rows, and safe with any name."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_learnprop.benchmark.page import to_html
from captum_learnprop.benchmark.summary import LEARNED, Estimate, Row, estimate
from captum_learnprop.benchmark.verdict import verdict
from captum_learnprop.errors import LearnpropError

SCORES = {"average precision": True, "deletion, blur": False}


def row(method: str, family: str, precision: float, *, passes: int = 2, spread: float = 0.01, **facts: object) -> Row:
    samples = {
        name: np.array([[(precision if higher else 1 - precision) + spread * (-1) ** i for i in range(8)]])
        for name, higher in SCORES.items()
    }
    estimates = {name: estimate(one.tolist()) for name, one in samples.items()}
    found = Row(
        model="vgg", scenes="photos", method=method, family=family, passes=passes, seconds=0.0123, treatment="signed",
        estimates=estimates, same={}, samples=samples, recognised=0.5, training_seconds=math.nan, seeds=1, asked=1,
        failures=(), error=None,
    )  # fmt: skip
    return replace(found, **facts)  # type: ignore[arg-type]


REASON = "it is <no> transformer"

ROOM = [
    row("saliency", "gradient", 0.4),
    row("LRP z+", "lrp", 0.6),
    row("LRP z+ x Grad-CAM", "product", 0.7, passes=4),
    row("ground truth", "control", 1.0, passes=0),
    row("random", "control", 0.1, passes=0),
    row("gates, untrained", "untrained", 0.4),
    row("gates, learned", LEARNED, 0.8, spread=0.02),
    row("token", "token", 0.0, estimates={}, samples={}, error=REASON, failures=((None, REASON),)),
]


def picture(kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, kind)
    return buffer.getvalue()


class Whole(HTMLParser):
    """The page's tags, closed in order, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_with_everything() -> None:
    page = to_html(
        ROOM, about={"command": "learnprop evaluate", "seeds": [0, 1], "versions": {"torch": "2", "none": None}},
        figures=[("What it costs", picture())], galleries=[("where is it?", picture("jpeg")), ("and it?", picture())],
    )  # fmt: skip
    whole = Whole(page)
    for text in (
        "vgg, photos",
        "finds the asked object best",
        "0.800",
        "12.3",
        "seeds",
        "0, 1",
        "torch 2",
        "where is it?",
    ):
        assert text in whole.text, text
    assert "none None" not in whole.text
    sources = [attributes["src"] or "" for tag, attributes in whole.tags if tag == "img"]
    assert [source.partition(";")[0] for source in sources] == ["data:image/png", "data:image/jpeg", "data:image/png"]
    assert base64.b64decode(sources[1].partition(",")[2]) == picture("jpeg")
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    links = {(attributes["href"] or "")[1:] for tag, attributes in whole.tags if tag == "a"}
    assert links == {attributes["id"] for _, attributes in whole.tags if "id" in attributes}


def test_names_are_shown_and_never_read_as_html() -> None:
    evil = '<img src=x onerror="alert(1)">&amp; **x** `y`'
    rows = [replace(one, model=evil, method=f"{one.method} {evil}", scenes=evil) for one in ROOM]
    page = to_html(rows, about={evil: [evil, {evil: evil}]}, figures=[(evil, picture())], galleries=[(evil, picture())])
    whole = Whole(page)
    assert [attributes.get("onerror") for tag, attributes in whole.tags if tag == "img"] == [None, None]
    assert "<img src=x" not in page
    assert whole.text.count('<img src=x onerror="alert(1)">&amp;') > 10


def test_learned_methods_are_marked_and_the_best_is_bold() -> None:
    page = to_html(ROOM, about={})
    marked = re.findall(r'<tr class="learned"><td>([^<]*)', page)
    assert {name.strip() for name in marked} == {"gates, learned"}
    assert len(marked) == 2  # overview, and scores
    assert "<b>0.800</b>" in page
    assert "<b>1.000</b>" not in page  # of the true pixels, a control
    head = re.search(r"<th>method +</th><th>([^<]*)</th><th>([^<]*)</th><th>([^<]*)</th>", page.replace("\n", ""))
    assert head is not None
    assert [name.strip() for name in head.groups()] == ["passes", "ms / image", "average precision ↑"]


def test_failures_are_told_with_their_reasons() -> None:
    page = to_html(ROOM, about={})
    assert "<li>token: did not run. it is &lt;no&gt; transformer</li>" in page
    assert "What did not run" not in to_html(ROOM[:-1], about={})
    assert "#maps" not in to_html(ROOM, about={})  # there are none


def test_a_picture_that_cannot_be_shown_is_named(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(picture())
    assert "data:image/png" in to_html(ROOM, about={}, figures=[("cost", path)])
    with pytest.raises(LearnpropError, match="cannot read the picture 'cost'"):
        to_html(ROOM, about={}, figures=[("cost", tmp_path / "none.png")])
    with pytest.raises(LearnpropError, match="'cost' is neither PNG nor JPEG"):
        to_html(ROOM, about={}, figures=[("cost", b"%PDF")])


def test_the_verdict_compares_the_trained_one_with_its_start_and_a_quick_one() -> None:
    found = verdict(ROOM)
    assert found.sentences == (
        "**gates, learned** finds the asked object best: average precision 0.800 ± 0.008.",
        "It was trained, and is clearly better than its untrained start (+0.400 ± 0.004) and clearly better than the "
        "best hand-made method of at most two passes, **LRP z+** (+0.200 ± 0.004).",
    )
    assert found.others == ("**gates, learned**: deletion, blur 0.200",)


def test_the_verdict_says_when_training_does_not_help() -> None:
    rows = [one for one in ROOM if one.family != LEARNED]
    sentences = verdict([*rows, row("gates, learned", LEARNED, 0.405, spread=0.05)]).sentences
    assert sentences[0].startswith("**LRP z+ x Grad-CAM** finds the asked object best")
    assert sentences[1] == (
        "The best trained one, **gates, learned** (0.405 ± 0.019), is not clearly different from its untrained start "
        "(+0.005 ± 0.015) and clearly worse than the best hand-made method of at most two passes, **LRP z+** "
        "(-0.195 ± 0.015)."
    )
    assert verdict(rows).sentences[1] == "No trained method was compared."


def test_the_verdict_warns_of_scenes_that_a_control_solves() -> None:
    (first, *_) = verdict([*ROOM, row("centre prior", "control", 0.9)]).sentences
    assert "**centre prior**, which does not look at the net, has 0.900" in first
    assert "finds" not in verdict(ROOM[-1:]).sentences[0]


def test_rows_without_samples_have_no_differences() -> None:
    rows = [replace(one, samples={}) for one in ROOM]
    assert verdict(rows).sentences == (
        "**gates, learned** finds the asked object best: average precision 0.800 ± 0.008.",
    )
    assert "gates, learned" in to_html(rows, about={})
    lonely = replace(ROOM[0], estimates={"average precision": Estimate(0.5, math.nan, math.nan, math.nan, 1, 1)})
    assert "nan" not in to_html([lonely], about={})


def test_caveats_come_before_the_figures() -> None:
    page = to_html(ROOM, about={}, caveats=["splits share <their> cut-outs"])
    assert page.index("splits share &lt;their&gt; cut-outs") < page.index("How to read it</h2>")
    assert "never saw the objects" not in page
    assert "never saw the objects" in to_html(ROOM, about={})
