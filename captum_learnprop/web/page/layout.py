"""What is where on the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from captum_learnprop.attribution.tokens.concepts import SIMILARITIES
from captum_learnprop.web.examples import Example
from captum_learnprop.web.learning import FEWEST, MOST_STEPS
from captum_learnprop.web.uploads import MAX_BYTES, MAX_PIXELS

SIGNS = {"as suits each method": None, "absolute": "absolute", "positive": "positive", "signed": "signed"}
"""What the page calls the signs of maps."""

_EXAMPLE = "element.addEventListener('learnprop-example', (event) => trigger('example', event.detail));"
_PATCHES = "element.addEventListener('learnprop-patches', (event) => trigger('patches', event.detail));"


@dataclass(frozen=True)
class Widgets:
    """What can be clicked, and what shows answers."""

    note: Any
    examples: Any
    picture: Any
    model: Any
    about: Any
    top: Any
    search: Any
    methods: Any
    more: Any
    sign: Any
    maps: Any
    lines: Any
    files: Any
    concept: ConceptWidgets
    patches: PatchWidgets
    learning: LearningWidgets
    verdicts: VerdictWidgets


@dataclass(frozen=True)
class ConceptWidgets:
    """The tab of concepts."""

    tab: Any
    pictures: Any
    examples: Any
    similarity: Any
    run: Any
    maps: Any
    lines: Any


@dataclass(frozen=True)
class PatchWidgets:
    """The tab of patches."""

    tab: Any
    grid: Any
    said: Any


@dataclass(frozen=True)
class LearningWidgets:
    """The tab of trainings."""

    pictures: Any
    folder: Any
    source: Any
    family: Any
    steps: Any
    run: Any
    cancel: Any
    said: Any
    file: Any


@dataclass(frozen=True)
class VerdictWidgets:
    """The tab of analyses."""

    rules: Any
    run: Any
    cancel: Any
    said: Any


def lay_out(names: list[str], examples: dict[str, Example], sources: list[str]) -> Widgets:
    """Puts everything on the page that is being built.

    Args:
        names: The models.
        examples: Pictures to begin with.
        sources: Where pictures to train on come from.
    """
    gr.HTML(
        "<div class='lp-head'><h1>What in this picture speaks for the class?</h1>"
        "<p>Take a picture, click on a class, and compare methods. Nothing leaves this machine.</p></div>"
    )
    note = gr.HTML(elem_id="lp-note")
    with gr.Row(equal_height=False, elem_classes="lp-main"):
        with gr.Column(scale=3, min_width=300, elem_classes="lp-left"):
            picture, shown = _picture_step()
            model, about = _model_step(names)
            top, search = _class_step()
            methods, more, sign = _method_step()
        with gr.Column(scale=8, min_width=300):
            with _part(3):
                maps = gr.HTML(elem_id="lp-maps", min_height=120)
            with _part(5):
                files, lines = _saving()
            with _part(6), gr.Tabs(elem_id="lp-tabs"):
                learning = _learning_tab(sources)
                verdicts = _verdict_tab()
                concept = _concept_tab(list(examples))
                patches = _patch_tab()
    return Widgets(
        note, shown, picture, model, about, top, search, methods, more, sign, maps, lines, files, concept, patches,
        learning, verdicts,
    )  # fmt: skip


def _saving() -> tuple[Any, Any]:
    with gr.Accordion("Save: figure, numbers, and the Python lines that make the same maps", open=False):
        files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="lp-files")
        lines = gr.Code(label="Python", language="python", interactive=False, elem_id="lp-lines")
    return files, lines


def _part(order: int) -> Any:
    """Returns a column of widgets that belong together; on a phone they stand in this order."""
    return gr.Column(elem_classes=f"lp-part lp-o{order}")


def _step(title: str, text: str) -> None:
    gr.HTML(f"<div class='lp-step'><h2>{title}</h2><p>{text}</p></div>")


def _drop(label: str, count: str, name: str) -> Any:
    return gr.File(
        label=label, file_count=count, type="filepath", height=120, elem_id=name, elem_classes="lp-drop", min_width=120
    )


def _picture_step() -> tuple[Any, Any]:
    with _part(1):
        _step("1. Picture", "Choose an example, or drop one of yours.")
        shown = gr.HTML(elem_id="lp-examples", js_on_load=_EXAMPLE)
        label = f"Your picture, up to {MAX_BYTES // 2**20} MB, {MAX_PIXELS // 10**6} megapixels"
        picture = _drop(label, "single", "lp-picture")
    return picture, shown


def _model_step(names: list[str]) -> tuple[Any, Any]:
    with _part(2):
        _step("2. Model", "The one the page was started with, or another that is here.")
        model = gr.Dropdown(names, value=names[0], label="Model", elem_id="lp-model")
        about = gr.HTML(elem_id="lp-about")
    return model, about


def _class_step() -> tuple[Any, Any]:
    with _part(2):
        _step("3. Class", "One of the five highest, or any by its name.")
        top = gr.Radio([], label="Highest classes", elem_id="lp-top")
        search = gr.Dropdown([], value=None, label="Another class, by name", filterable=True, elem_id="lp-search")
    return top, search


def _method_step() -> tuple[Any, Any, Any]:
    with _part(4):
        _step("4. Methods", "Ticked ones lie side by side.")
        methods = gr.CheckboxGroup([], label="Methods", elem_id="lp-methods")
        more = gr.Dropdown([], label="More methods", multiselect=True, filterable=True, elem_id="lp-more")
        sign = gr.Radio(list(SIGNS), value=next(iter(SIGNS)), label="Signs", elem_id="lp-sign")
    return methods, more, sign


def _learning_tab(sources: list[str]) -> LearningWidgets:
    with gr.Tab("Train rules", id="train"):
        _step(
            "Rules that are trained for this model",
            f"From {FEWEST} pictures on, without labels. The page goes on meanwhile; the rules then are a method like "
            "any other.",
        )
        with gr.Row():
            source = gr.Radio(sources, value=sources[0], label="Pictures", elem_id="lp-source")
            family = gr.Radio(["gates"], value="gates", label="Rules", elem_id="lp-family")
        with gr.Row(equal_height=False):
            pictures = _drop("Your pictures", "multiple", "lp-pictures")
            folder = _drop("A folder of yours", "directory", "lp-folder")
        steps = gr.Slider(0, MOST_STEPS, value=0, step=5, label="Steps; 0 for as many as suit", elem_id="lp-steps")
        with gr.Row():
            run = gr.Button("Train", variant="primary", elem_id="lp-train")
            cancel = gr.Button("Cancel", elem_id="lp-cancel")
        said = gr.HTML(elem_id="lp-training")
        file = gr.File(label="The rules", interactive=False, visible=False, elem_id="lp-rules")
    return LearningWidgets(pictures, folder, source, family, steps, run, cancel, said, file)


def _verdict_tab() -> VerdictWidgets:
    with gr.Tab("Do maps explain the model?", id="verdicts"):
        _step(
            "What maps depend on",
            "Backward rules are compared with those of re-initialised nets and of another class, on a few pictures. "
            "It takes seconds for a small net, minutes for a real one.",
        )
        rules = gr.CheckboxGroup([], label="Rules", elem_id="lp-analysed")
        with gr.Row():
            run = gr.Button("Analyse", variant="primary", elem_id="lp-analyse")
            cancel = gr.Button("Cancel", elem_id="lp-analyse-cancel")
        said = gr.HTML(elem_id="lp-verdicts")
    return VerdictWidgets(rules, run, cancel, said)


def _concept_tab(names: list[str]) -> ConceptWidgets:
    with gr.Tab("Concept", id="concept", visible=False) as tab:
        _step(
            "A concept from a few pictures",
            "What in the picture makes the transformer see what these share: CDAM of the similarity of embeddings.",
        )
        pictures = _drop("Pictures of the concept", "multiple", "lp-concept")
        examples = gr.Dropdown(names, label="Examples of it", multiselect=True, elem_id="lp-concept-examples")
        similarity = gr.Radio(list(SIMILARITIES), value="dot", label="Similarity", elem_id="lp-similarity")
        run = gr.Button("Explain the concept", variant="primary", elem_id="lp-concept-run")
        maps = gr.HTML(elem_id="lp-concept-maps")
        with gr.Accordion("The Python lines that make the same map", open=False):
            lines = gr.Code(label="Python", language="python", interactive=False)
    return ConceptWidgets(tab, pictures, examples, similarity, run, maps, lines)


def _patch_tab() -> PatchWidgets:
    with gr.Tab("Patches", id="patches", visible=False) as tab:
        _step("Click patches away", "What does the transformer say without them? They leave before its first block.")
        with gr.Row(equal_height=False):
            grid = gr.HTML(elem_id="lp-patches", js_on_load=_PATCHES)
            said = gr.HTML(elem_id="lp-without")
    return PatchWidgets(tab, grid, said)
