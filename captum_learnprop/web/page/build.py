"""The page: its widgets, and which action each click starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from captum_learnprop.web.examples import examples
from captum_learnprop.web.offered import Offer
from captum_learnprop.web.page.actions import EXAMPLES, UPLOADS, Actions
from captum_learnprop.web.page.layout import Widgets, lay_out
from captum_learnprop.web.page.look import TITLE
from captum_learnprop.web.visits import Visits

_AT_ONCE = 4
"""Actions of a kind that run at once, of different visitors; a model is only ever used by one."""

_LATEST = "always_last"


def build(offer: Offer, visits: Visits, images: Path | None = None) -> gr.Blocks:
    """Returns the page.

    Args:
        offer: The models.
        visits: Who looks.
        images: A folder of pictures to train on, beside examples and uploads.
    """
    known = examples()
    sources = [*([f"folder {images.name}"] if images is not None else []), EXAMPLES, UPLOADS]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 6 * 3600)) as page:
        widgets = lay_out(offer.names, known, sources)
        actions = Actions(widgets, offer, visits, known, images)
        _wire(page, widgets, actions)
    page.queue(default_concurrency_limit=_AT_ONCE)
    return page


def _wire(page: gr.Blocks, widgets: Widgets, actions: Actions) -> None:
    shown = [
        widgets.note, widgets.examples, widgets.picture, widgets.about, widgets.top, widgets.search, widgets.methods,
        widgets.more, widgets.maps, widgets.lines, widgets.files, widgets.concept.tab, widgets.concept.maps,
        widgets.patches.tab, widgets.patches.grid, widgets.patches.said, widgets.learning.family,
        widgets.verdicts.rules,
    ]  # fmt: skip
    answer: dict[str, Any] = {"outputs": shown, "show_progress_on": widgets.maps, "api_visibility": "private"}
    page.load(actions.begin, None, **answer)
    page.unload(actions.leave)
    widgets.examples.example(actions.take_example, None, **answer, trigger_mode=_LATEST)
    widgets.picture.upload(actions.take_upload, widgets.picture, **answer)
    widgets.model.input(actions.choose_model, widgets.model, **answer, trigger_mode=_LATEST)
    widgets.top.input(actions.choose_top, widgets.top, **answer, trigger_mode=_LATEST)
    widgets.search.input(actions.choose_any, widgets.search, **answer, trigger_mode=_LATEST)
    for one in (widgets.methods, widgets.more):
        one.input(actions.choose_methods, [widgets.methods, widgets.more], **answer, trigger_mode=_LATEST)
    widgets.sign.input(actions.choose_sign, widgets.sign, **answer, trigger_mode=_LATEST)
    _wire_tabs(widgets, actions, shown)


def _wire_tabs(widgets: Widgets, actions: Actions, shown: list[Any]) -> None:
    concept, patches, learning, verdicts = widgets.concept, widgets.patches, widgets.learning, widgets.verdicts
    private: dict[str, Any] = {"api_visibility": "private"}
    concept.run.click(
        actions.concept, [concept.pictures, concept.examples, concept.similarity], [concept.maps, concept.lines],
        show_progress_on=concept.maps, **private,
    )  # fmt: skip
    patches.grid.patches(actions.without, None, [patches.said], trigger_mode=_LATEST, show_progress="hidden", **private)
    learning.run.click(
        actions.train,
        [learning.source, learning.pictures, learning.folder, learning.family, learning.steps],
        [*shown, learning.said, learning.file],
        show_progress="hidden",
        concurrency_limit=2,
        **private,
    )
    learning.cancel.click(actions.cancel_training, None, None, **private)
    verdicts.run.click(
        actions.analyse, verdicts.rules, [verdicts.said], show_progress="hidden", concurrency_limit=2, **private
    )
    verdicts.cancel.click(actions.cancel_analysis, None, None, **private)
