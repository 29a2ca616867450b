"""The page in a real Chromium: everything that can be clicked is, and reached by the keyboard alone.

Run with ``pytest -m browser``; ``$LEARNPROP_SHOTS`` names a folder for screenshots, ``$LEARNPROP_CHROMIUM`` another
browser than ``/usr/bin/chromium``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import captum_learnprop as cl
from captum_learnprop.web.examples import example_picture
from captum_learnprop.web.offered import ModelChoice, Offer
from captum_learnprop.web.server import Server

pytestmark = pytest.mark.browser

WAIT = 1000 * int(os.environ.get("LEARNPROP_WAIT", "60"))
"""Milliseconds that anything may take on a busy machine."""

NOISE = ("svelte-i18n", "warning: Method not implemented.", "Canvas2D: Multiple readback")
"""What Gradio's own script warns of, and what reading a canvas here does."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    offer = Offer([ModelChoice(f"reference:{kind}-digits", {"size": 64}) for kind in ("resnet", "vit")])
    with import_module("captum_learnprop.web.page.serve").served(Server(), offer) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with import_module("playwright.sync_api").sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=os.environ.get("LEARNPROP_CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        yield found
        found.close()


def opened(browser: Any, address: str, width: int = 1280) -> SimpleNamespace:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    said: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda one: said.append(f"{one.type}: {one.text}"))
    page.on("pageerror", lambda one: said.append(f"error: {one}"))
    page.on("request", lambda one: hosts.add(one.url.split("/")[2]) if one.url.startswith(("http", "ws")) else None)
    page.goto(address)
    page.wait_for_selector("#lp-maps canvas")
    page.wait_for_selector("#lp-top input")
    return SimpleNamespace(page=page, said=said, hosts=hosts, context=context)


@pytest.fixture
def session(browser: Any, address: str) -> Iterator[SimpleNamespace]:
    found = opened(browser, address)
    yield found
    found.context.close()
    assert [one for one in found.said if one.startswith("error")] == []
    assert [one for one in found.said if not any(noise in one for noise in NOISE)] == []
    assert found.hosts == {address.split("/")[2]}


@pytest.fixture
def page(session: SimpleNamespace) -> Any:
    return session.page


def expect(locator: Any) -> Any:
    """What playwright expects of a part of the page, for which it waits."""
    return import_module("playwright.sync_api").expect(locator)


def shot(page: Any, name: str) -> None:
    folder = os.environ.get("LEARNPROP_SHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def target(page: Any) -> str:
    return str(page.text_content("#lp-maps .lp-target em"))


def methods(page: Any) -> list[str]:
    return [str(one) for one in page.locator("#lp-maps figure:has(canvas) strong").all_text_contents()]


def wait_for_methods(page: Any, *names: str) -> None:
    page.wait_for_function(
        "names => JSON.stringify([...document.querySelectorAll('#lp-maps figure:has(canvas) strong')]"
        ".map(one => one.textContent)) === JSON.stringify(names)",
        arg=list(names),
    )


def wait_for_target(page: Any, name: str) -> None:
    page.wait_for_function("name => document.querySelector('#lp-maps .lp-target em')?.textContent === name", arg=name)


def choose_transformer(page: Any) -> None:
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="reference:vit-digits").click()
    page.wait_for_function("() => document.querySelector('#lp-methods')?.textContent.includes('CDAM')")
    wait_for_methods(page, "integrated gradients")


def test_it_loads_with_an_example_explained(page: Any) -> None:
    assert page.title() == "What in this picture speaks for the class?"
    assert methods(page) == ["LRP gamma x Grad-CAM"]
    expect(page.locator("#lp-top input")).to_have_count(5)
    assert page.locator("#lp-examples [aria-pressed=true]").text_content() == "digits 1"
    expect(page.locator("#lp-methods input:checked")).to_have_count(1)
    assert re.fullmatch(r"\d", target(page))


def test_a_class_is_chosen_among_the_highest_and_by_name(page: Any) -> None:
    first = target(page)
    choice = page.locator("#lp-top label").nth(1)
    name = str(choice.text_content()).strip().partition(":")[0]
    assert name != first
    choice.click()
    wait_for_target(page, name)
    other = next(digit for digit in "0123456789" if digit not in (first, name))
    page.get_by_label("Another class, by name").press_sequentially(other)
    expect(page.get_by_role("option")).to_have_count(1)
    page.get_by_role("option", name=other, exact=True).click()
    wait_for_target(page, other)


def test_methods_lie_side_by_side_and_signs_change_them(page: Any) -> None:
    page.get_by_label("Grad-CAM", exact=True).check()
    wait_for_methods(page, "LRP gamma x Grad-CAM", "Grad-CAM")
    page.get_by_label("More methods").click()
    page.get_by_role("option", name="input x gradient").click()
    wait_for_methods(page, "LRP gamma x Grad-CAM", "Grad-CAM", "input x gradient")
    page.keyboard.press("Escape")
    page.get_by_label("signed", exact=True).check()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#lp-maps figcaption span')].filter(one => /passes/.test(one.textContent))"
        ".every(one => one.textContent.endsWith('signed'))"
    )
    shot(page, "side-by-side")


def test_a_map_is_drawn_as_strong_as_asked_and_read_by_pointer_and_keys(page: Any) -> None:
    strength = "() => { const c = document.querySelector('#lp-maps canvas'); return Math.max(...c.getContext('2d')" \
        ".getImageData(0, 0, c.width, c.height).data.filter((_, at) => at % 4 === 3)) }"  # fmt: skip
    assert page.evaluate(strength) == pytest.approx(191, abs=1)
    page.get_by_label("opacity of the maps").fill("20")
    assert page.evaluate(strength) == pytest.approx(51, abs=1)
    stage = page.locator("#lp-maps .lp-map")
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] * 0.7, "y": box["height"] * 0.3})
    said = page.text_content("#lp-maps output.lp-value")
    picture = example_picture("digits 1")
    explained = cl.explain("reference:resnet-digits", picture, size=64)
    assert explained.target == target(page)
    value = float(explained.map[int(64 * 0.3), int(64 * 0.7)])
    assert float(said.split()[0]) == pytest.approx(value, rel=0.01, abs=float(explained.map.abs().max()) / 30_000)
    assert said.endswith("at column 44, row 19")
    stage.focus()
    page.keyboard.press("Shift+ArrowLeft")
    assert page.text_content("#lp-maps output.lp-value").endswith("at column 38, row 19")


def test_an_upload_is_explained_and_a_broken_file_gets_a_sentence(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "text {{x}} ${y}.png").write_text("<b>no picture</b>")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    chooser = page.locator("#lp-picture input[type=file]")
    chooser.set_input_files(tmp_path / "broken.png")
    note = page.locator("#lp-note [role=alert]")
    note.wait_for()
    assert re.search(r"broken\.png is (no picture|damaged)", note.text_content())
    shot(page, "broken-file")
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    chooser = page.locator("#lp-picture input[type=file]")
    chooser.set_input_files(tmp_path / "mine.png")
    page.wait_for_function("() => document.querySelector('#lp-maps figcaption strong')?.textContent === 'mine.png'")
    expect(note).to_have_count(0)
    expect(page.locator("#lp-maps figcaption").first).to_contain_text("96 x 48 pixels")
    expect(page.locator("#lp-maps .lp-frame")).to_have_count(2)  # the model sees the middle square


def test_what_is_saved_makes_the_same_map(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.get_by_role("button", name=re.compile("^Save")).click()
    page.wait_for_selector("#lp-files a[download]")
    lines = page.locator("#lp-lines .cm-line").all_text_contents()
    with page.expect_download() as download:
        page.locator("#lp-files a[download]", has_text=re.compile("")).last.click()
    download.value.save_as(tmp_path / "map.safetensors")
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert torch.equal(load_file(tmp_path / "map.safetensors")["map"], names["found"][0].map)


def test_a_concept_and_patches_of_a_transformer(page: Any, tmp_path: Path) -> None:
    choose_transformer(page)
    for number in (3, 4):
        example_picture(f"digits {number}").save(tmp_path / f"{number}.png")
    page.get_by_role("tab", name="Concept").click()
    page.locator("#lp-concept input[type=file]").set_input_files([tmp_path / "3.png", tmp_path / "4.png"])
    page.locator("#lp-concept tr").nth(1).wait_for()
    page.get_by_role("button", name="Explain the concept").click()
    page.wait_for_selector("#lp-concept-maps canvas")
    assert page.text_content("#lp-concept-maps .lp-target em") == "what 2 pictures share"
    page.get_by_label("cosine").check()
    page.get_by_role("button", name="Explain the concept").click()
    page.wait_for_selector("#lp-concept-maps strong:text('CDAM, cosine')")
    shot(page, "concept")
    page.get_by_role("tab", name="Patches").click()
    expect(page.locator("#lp-patches .lp-grid button")).to_have_count(64)
    page.get_by_label("patch in row 3, column 4", exact=True).click()
    page.wait_for_selector("#lp-without :text('without 1 of 64 patches')")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.wait_for_selector("#lp-without :text('without 2 of 64 patches')")
    expect(page.locator("#lp-patches [aria-pressed=true]")).to_have_count(2)
    shot(page, "patches")
    page.get_by_role("button", name="Bring all back").click()
    page.wait_for_selector("#lp-without :text('without 0 of 64 patches')")


def test_a_training_is_cancelled_and_another_gives_a_method(page: Any) -> None:
    page.get_by_label("number input for Steps; 0 for as many as suit").fill("200")
    page.get_by_label("number input for Steps; 0 for as many as suit").press("Tab")
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_selector("#lp-training progress")
    page.locator("#lp-cancel").click()
    page.wait_for_selector("#lp-training :text('the training was cancelled; nothing of it was kept')")
    assert methods(page) == ["LRP gamma x Grad-CAM"]
    page.get_by_label("number input for Steps; 0 for as many as suit").fill("2")
    page.get_by_label("number input for Steps; 0 for as many as suit").press("Tab")
    page.get_by_role("button", name="Train", exact=True).click()
    wait_for_methods(page, "LRP gamma x Grad-CAM", "trained_gradient_1")
    expect(page.locator("#lp-training")).to_contain_text("in 2 steps")
    expect(page.get_by_label("trained_gradient_1").first).to_be_checked()
    shot(page, "trained")


def test_verdicts_in_words(page: Any) -> None:
    page.get_by_role("tab", name="Do maps explain the model?").click()
    page.get_by_role("button", name="Analyse").click()
    page.wait_for_selector("#lp-verdicts progress")
    page.wait_for_selector("#lp-verdicts .lp-more")
    said = page.text_content("#lp-verdicts .lp-more")
    assert re.match(r"gradient\. Weights: .* Class: .* Input: ", said)
    shot(page, "verdicts")


def test_the_keyboard_alone_reaches_every_control(page: Any) -> None:
    choose_transformer(page)
    page.get_by_role("button", name=re.compile("^Save")).click()
    missed: list[str] = []
    for tab in ("Train rules", "Do maps explain the model?", "Concept", "Patches"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        reached: list[str] = page.evaluate("() => []")
        for _ in range(250):
            page.keyboard.press("Tab")
            found = page.evaluate(ACTIVE)
            if found in reached and found == reached[0]:
                break
            reached.append(found)
        wanted = page.evaluate(CONTROLS)
        missed += [f"{tab}: {one}" for one in wanted if one not in reached]
        assert len(wanted) > 30
    assert missed == []


NAME = """
const name = (one) => {
  const part = one.closest('[id^="lp-"]')?.id || '';
  const told = one.getAttribute('aria-label') || one.labels?.[0]?.textContent;
  const text = told || one.textContent || one.placeholder || '';
  return `${part} ${one.tagName.toLowerCase()} ${one.type || ''} ${text.trim().replace(/\\s+/g, ' ').slice(0, 60)}`;
};
"""
ACTIVE = f"() => {{ {NAME} return name(document.activeElement); }}"
# Of a group in which arrow keys move (patches), one is reached by Tab.
CONTROLS = f"""() => {{ {NAME}
  const all = [...document.querySelectorAll('button, input, select, textarea, [role=application], a[href]')];
  return all.filter((one) => one.offsetParent !== null && !one.disabled && one.type !== 'file' &&
    !(one.closest('.lp-grid') && one.tabIndex < 0) && getComputedStyle(one).visibility !== 'hidden').map(name);
}}"""


PLACES = {"picture": "#lp-examples", "class": "#lp-top", "maps": "#lp-maps", "methods": "#lp-methods"}


@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window(browser: Any, address: str, width: int) -> None:
    found = opened(browser, address, width)
    found.page.wait_for_timeout(500)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    places = {
        name: found.page.locator(selector).first.bounding_box()
        for name, selector in {
            "picture": "#lp-examples",
            "class": "#lp-top",
            "maps": "#lp-maps",
            "methods": "#lp-methods",
        }.items()
    }
    if width == 400:  # one column: the maps come right after the class
        assert places["picture"]["y"] < places["class"]["y"] < places["maps"]["y"] < places["methods"]["y"]
        assert all(place["width"] > 300 for place in places.values())
    else:
        assert places["maps"]["x"] > places["class"]["x"] + places["class"]["width"]
    shot(found.page, f"page-{width}")
    found.context.close()
    assert [one for one in found.said if one.startswith("error")] == []


def test_a_password_is_asked_for(browser: Any) -> None:
    offer = Offer([ModelChoice("reference:resnet-digits", {"size": 64})])
    serve = import_module("captum_learnprop.web.page.serve")
    with serve.served(Server(password="s3cret"), offer) as address:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(address)
        page.get_by_label("password", exact=False).first.wait_for()
        assert page.locator("#lp-maps").count() == 0
        assert context.request.get(f"{address}config").status == 401
        page.locator("input").first.fill("anybody")
        page.locator("input[type=password]").fill("wrong")
        page.get_by_role("button", name="Login").click()
        page.wait_for_timeout(1000)
        assert page.locator("#lp-maps").count() == 0
        page.locator("input").first.fill("anybody")
        page.locator("input[type=password]").fill("s3cret")
        page.get_by_role("button", name="Login").click()
        page.wait_for_selector("#lp-maps canvas")
        context.close()


@pytest.mark.parametrize(
    ("widget", "event", "data", "said"),
    [
        ("lp-model", "input", "evil.py:make", "is not in the list of choices"),
        ("lp-search", "input", "evil.py:make", "is not in the list of choices"),
        ("lp-picture", "upload", {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}, "error"),
    ],
)
def test_what_the_page_does_not_offer_cannot_be_asked_for(
    browser: Any, address: str, widget: str, event: str, data: Any, said: str
) -> None:
    """Requests that no widget would send: a model by the name of a file, a file of the server's."""
    found = opened(browser, address)
    answer = found.page.evaluate(
        """async ([widget, event, data]) => {
          const config = window.gradio_config;
          const id = config.components.find((part) => part.props.elem_id === widget).id;
          const action = config.dependencies.find((one) => one.targets.some((at) => at[0] === id && at[1] === event));
          const session = `forged-${widget}`;
          await fetch('gradio_api/queue/join', {method: 'POST', headers: {'Content-Type': 'application/json'},
            body: JSON.stringify({data: [data], fn_index: action.id, session_hash: session})});
          const stream = await fetch(`gradio_api/queue/data?session_hash=${session}`);
          return await stream.text();
        }""",
        [widget, event, data],
    )
    found.context.close()
    assert '"success":false' in answer
    assert said in answer
    assert "learnprop-maps" not in answer
