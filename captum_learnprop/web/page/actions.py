"""What a click on the page does."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

from captum_learnprop.errors import LearnpropError
from captum_learnprop.web.choices import method_choices
from captum_learnprop.web.concepts import explain_concept
from captum_learnprop.web.drawn import element, frame_data, maps_data, picture_address, thumbnail
from captum_learnprop.web.examples import Example, example_picture, many_pictures
from captum_learnprop.web.job import Cancelled, Job
from captum_learnprop.web.learning import families, start_training
from captum_learnprop.web.lines import ConceptLines, concept_lines, python_lines
from captum_learnprop.web.offered import Offer
from captum_learnprop.web.page.layout import SIGNS, Widgets
from captum_learnprop.web.patches import said_without
from captum_learnprop.web.uploads import read_folder, read_upload, read_uploads
from captum_learnprop.web.verdicts import AT_HAND, picture_count, rule_choices, start_analysis
from captum_learnprop.web.visit import Shot, Visit
from captum_learnprop.web.visits import Visits
from captum_learnprop.wording import counted
from zennit_rules import RuleError

_LOG = logging.getLogger(__name__)

Update = dict[Any, Any]

Made = TypeVar("Made")
"""New values of widgets."""

EXAMPLES, UPLOADS = "examples", "your pictures"
"""Where pictures to train on come from; a folder of the command line is a third."""

_TICK = 0.4
"""Seconds between two looks at a job."""


def note(text: str, kind: str = "info", **more: Any) -> str:
    """Returns a sentence as the page shows it."""
    return element("note", {"text": text, "kind": kind, **more})


def told(where: Callable[[Actions], Any]) -> Callable[..., Any]:
    """Tells what goes wrong in an action in one sentence on the page, which goes on.

    Args:
        where: The widget that says it.
    """

    def around(action: Callable[..., Iterator[Update]]) -> Callable[..., Iterator[Update]]:
        @functools.wraps(action)
        def run(self: Actions, *given: Any) -> Iterator[Update]:
            # Of updates that follow each other fast a browser may miss one: each has all that came before.
            so_far: Update = {where(self): ""}
            yield dict(so_far)
            try:
                for update in action(self, *given):
                    so_far |= update
                    yield dict(so_far)
            except (LearnpropError, RuleError, NotImplementedError) as error:
                yield so_far | {where(self): note(str(error), "error")}
            # A user's net may raise anything, and the page must not die of it.
            except Exception as error:
                _LOG.exception("an action of the page failed")
                yield so_far | {where(self): note(f"That failed: {type(error).__name__}: {error}", "error")}

        return run

    return around


class Actions:
    """The actions of one page.

    Args:
        widgets: What they read and change.
        offer: The models.
        visits: Who looks.
        examples: Pictures to begin with.
        images: A folder of pictures to train on, which the command line named; None for none.
    """

    def __init__(
        self, widgets: Widgets, offer: Offer, visits: Visits, examples: dict[str, Example], images: Path | None
    ) -> None:
        self.widgets, self.offer, self.visits, self.examples, self.images = widgets, offer, visits, examples, images

    def visit(self, request: gr.Request) -> Visit:
        """Returns the visit of a request."""
        return self.visits.of(request.session_hash)

    # -- pictures and models -----------------------------------------------------------------------------------------

    @told(lambda self: self.widgets.note)
    def begin(self, request: gr.Request) -> Iterator[Update]:
        """Shows the first example by the first model."""
        visit = self.visit(request)
        first = next(iter(self._in_order(visit)), None)
        if first is not None:
            visit.look_at(Shot(first.name, first.image(), example=True))
        yield self._of_model(visit)
        if first is not None:
            yield from self._new_picture(visit)

    @told(lambda self: self.widgets.note)
    def take_example(self, event: gr.EventData, request: gr.Request) -> Iterator[Update]:
        """Looks at an example."""
        visit, name = self.visit(request), event._data["name"]
        visit.look_at(Shot(name, example_picture(name), example=True))
        yield {self.widgets.picture: None}
        yield from self._new_picture(visit)

    @told(lambda self: self.widgets.note)
    def take_upload(self, path: str | None, request: gr.Request) -> Iterator[Update]:
        """Looks at a picture of the visitor's."""
        if path is None:
            return
        visit = self.visit(request)
        visit.look_at(Shot(Path(path).name, read_upload(path)))
        yield {self.widgets.examples: self._shown_examples(visit)}
        yield from self._new_picture(visit)

    @told(lambda self: self.widgets.note)
    def choose_model(self, name: str, request: gr.Request) -> Iterator[Update]:
        """Takes another model."""
        visit = self.visit(request)
        visit.choose_model(self.offer.model(name))
        yield self._of_model(visit)
        if visit.shot is not None:
            yield from self._new_picture(visit)

    def _in_order(self, visit: Visit) -> list[Example]:
        """Returns the examples, those first that the model knows."""
        return sorted(self.examples.values(), key=lambda one: one.draws is not visit.model.draws)

    def _shown_examples(self, visit: Visit) -> str:
        items = [{"name": one.name, "picture": thumbnail(one.image())} for one in self._in_order(visit)]
        chosen = visit.shot.name if visit.shot is not None and visit.shot.example else None
        return element("examples", {"items": items, "chosen": chosen})

    def _of_model(self, visit: Visit) -> Update:
        """Returns what depends on the model alone."""
        model, widgets, choices = visit.model, self.widgets, method_choices(visit.model)
        transformer, kinds = model.anatomy is not None, list(families(model))
        rules = rule_choices(visit)
        return {
            widgets.about: note(model.known.assumed) if model.known.assumed else "",
            widgets.examples: self._shown_examples(visit),
            widgets.search: gr.update(choices=list(zip(model.names, range(model.classes), strict=True)), value=None),
            widgets.methods: gr.update(choices=[*choices.at_hand, *visit.own_rules()], value=[]),
            widgets.more: gr.update(choices=list(choices.others), value=[]),
            widgets.concept.tab: gr.update(visible=transformer),
            widgets.patches.tab: gr.update(visible=transformer),
            widgets.learning.family: gr.update(choices=kinds, value=kinds[0]),
            widgets.verdicts.rules: gr.update(choices=rules, value=[one for one in AT_HAND if one in rules]),
        }

    def _new_picture(self, visit: Visit) -> Iterator[Update]:
        """Yields what the model says of a picture, then its maps."""
        widgets, guesses = self.widgets, visit.prediction()
        names = visit.model.names
        visit.choose_class(guesses[0].index)
        yield {
            widgets.top: gr.update(
                choices=[(f"{names[one.index]}: {_percent(one.probability)}", one.index) for one in guesses],
                value=guesses[0].index,
            ),
            widgets.search: None,
            widgets.patches.grid: self._patches(visit),
            widgets.patches.said: "",
            widgets.concept.maps: "",
        }
        yield from self._show(visit)

    def _patches(self, visit: Visit) -> str:
        if visit.model.anatomy is None:
            return ""
        rows, columns = visit.model.anatomy.grid
        frame = frame_data(visit.frame)
        picture = picture_address(visit.seen.image)
        data = {"picture": picture, "rows": rows, "columns": columns, "frame": frame, "title": visit.seen.name}
        return element("patches", data)

    # -- classes, methods, signs -------------------------------------------------------------------------------------

    @told(lambda self: self.widgets.note)
    def choose_top(self, target: int | None, request: gr.Request) -> Iterator[Update]:
        """Explains one of the highest classes."""
        yield {self.widgets.search: None}
        yield from self._choose_class(target, request)

    @told(lambda self: self.widgets.note)
    def choose_any(self, target: int | None, request: gr.Request) -> Iterator[Update]:
        """Explains a class that was found by its name."""
        yield {self.widgets.top: target}
        yield from self._choose_class(target, request)

    def _choose_class(self, target: int | None, request: gr.Request) -> Iterator[Update]:
        if target is None:
            return
        visit = self.visit(request)
        visit.choose_class(target)
        yield from self._show(visit)

    @told(lambda self: self.widgets.note)
    def choose_methods(self, at_hand: list[str], more: list[str], request: gr.Request) -> Iterator[Update]:
        """Explains by other methods."""
        visit = self.visit(request)
        visit.choose_methods([*(at_hand or []), *(more or [])])
        yield from self._show(visit)

    @told(lambda self: self.widgets.note)
    def choose_sign(self, sign: str, request: gr.Request) -> Iterator[Update]:
        """Shows maps with other signs."""
        visit = self.visit(request)
        visit.choose_sign(SIGNS.get(sign, sign))
        yield from self._show(visit)

    def _show(self, visit: Visit) -> Iterator[Update]:
        """Yields the maps, one more at a time, then what saves them."""
        widgets, found, address = self.widgets, [], picture_address(visit.seen.image)
        for one in visit.explanations():
            found.append(one)
            update = {widgets.maps: element("maps", maps_data(found, address))}
            if not visit.methods:  # what was taken by itself is ticked
                visit.adopt(one)
                update |= self._ticked(visit)
            yield update
        if len(found) == len(visit.methods):
            yield {
                widgets.lines: python_lines(visit),
                widgets.files: [str(path) for path in visit.save(found)],
            }

    def _ticked(self, visit: Visit) -> Update:
        choices = method_choices(visit.model)
        at_hand = [*choices.at_hand, *visit.own_rules()]
        return {
            self.widgets.methods: gr.update(choices=at_hand, value=[one for one in visit.methods if one in at_hand]),
            self.widgets.more: [one for one in visit.methods if one not in at_hand],
        }

    # -- transformers ------------------------------------------------------------------------------------------------

    @told(lambda self: self.widgets.concept.maps)
    def concept(
        self, paths: Sequence[str] | None, names: Sequence[str] | None, similarity: str, request: gr.Request
    ) -> Iterator[Update]:
        """Explains a concept."""
        visit, widgets = self.visit(request), self.widgets.concept
        shots = [Shot(name, example_picture(name), example=True) for name in names or []]
        shots += [Shot(Path(path).name, read_upload(path)) for path in paths or []]
        found = explain_concept(visit, shots, similarity)
        yield {
            widgets.maps: element("maps", maps_data([found], picture_address(visit.seen.image))),
            widgets.lines: concept_lines(visit, ConceptLines(shots, similarity)),
        }

    @told(lambda self: self.widgets.patches.said)
    def without(self, event: gr.EventData, request: gr.Request) -> Iterator[Update]:
        """Says what the model says without some patches."""
        visit = self.visit(request)
        found = said_without(visit, event._data["gone"])
        name = visit.model.names[found.target]
        text = (
            f"{name}: {_percent(found.left)} without {found.gone} of {found.patches} patches, "
            f"{_percent(found.whole)} with all"
        )
        more = [f"{visit.model.names[one.index]}: {_percent(one.probability)}" for one in found.guesses]
        yield {self.widgets.patches.said: note(text, "info", more=["Highest classes without them:", *more])}

    # -- jobs --------------------------------------------------------------------------------------------------------

    @told(lambda self: self.widgets.learning.said)
    def train(
        self,
        source: str,
        paths: Sequence[str] | None,
        folder: Sequence[str] | None,
        family: str,
        steps: float,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Trains rules, with progress."""
        visit, widgets = self.visit(request), self.widgets.learning
        model = visit.model
        pictures, left_out = self._pictures(visit, source, [*(paths or []), *(folder or [])])
        job = visit.begin("training", lambda: start_training(model, pictures, family, int(steps) or None))
        rules = yield from _finished(job, widgets.said)
        if rules is None:
            return
        name = visit.keep_rules(rules, model)
        yield {
            widgets.said: note(_summary(name, rules.training, len(pictures)), "good", more=left_out),
            widgets.file: gr.update(value=str(visit.file_of(name)), visible=True),
        }
        if visit.model is model and visit.shot is not None:
            visit.choose_methods([*visit.methods, name][-8:])
            yield self._ticked(visit) | {self.widgets.verdicts.rules: gr.update(choices=rule_choices(visit))}
            yield from self._show(visit)

    def _pictures(self, visit: Visit, source: str, paths: Sequence[str]) -> tuple[list[Image.Image], list[str]]:
        if source == EXAMPLES:
            return many_pictures(visit.model.draws), []
        if source == UPLOADS or self.images is None:
            return read_uploads(paths)
        return read_folder(self.images)

    def cancel_training(self, request: gr.Request) -> None:
        """Ends a training."""
        self._cancel(request, "training")

    @told(lambda self: self.widgets.verdicts.said)
    def analyse(self, names: list[str], request: gr.Request) -> Iterator[Update]:
        """Says in words what maps depend on."""
        visit, widgets = self.visit(request), self.widgets.verdicts
        pictures = [visit.seen.image, *many_pictures(visit.model.draws)][: picture_count(visit)]
        job = visit.begin("analysis", lambda: start_analysis(visit, names or [], pictures))
        analysis = yield from _finished(job, widgets.said)
        if analysis is None:
            return
        more = [f"{one.rule}. {' '.join(one.verdicts.values())}" for one in analysis.reports]
        yield {
            widgets.said: note(
                f"Measured on {counted(len(pictures), 'picture')}, the present one and examples.", more=more
            )
        }

    def cancel_analysis(self, request: gr.Request) -> None:
        """Ends an analysis."""
        self._cancel(request, "analysis")

    def _cancel(self, request: gr.Request, what: str) -> None:
        job = self.visit(request).jobs.get(what)
        if job is not None:
            job.cancel()

    def leave(self, request: gr.Request) -> None:
        """Ends the visit of a page that was closed."""
        self.visits.forget(request.session_hash)


def _percent(share: float) -> str:
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _finished(job: Job[Made], said: Any) -> Generator[Update, None, Made | None]:
    """Shows how far a job is until it ends, and returns what it made; None if it was cancelled."""
    try:
        while job.running:
            yield {said: _progress(job.wait(_TICK))}
        return job.result()
    except Cancelled as error:
        yield {said: note(str(error))}
        return None
    finally:
        job.cancel()  # nobody waits for it any more


def _progress(progress: Any) -> str:
    return note(f"{progress.words}, {progress.seconds:.0f} s", "progress", share=progress.share)


def _summary(name: str, training: dict[str, Any], pictures: int) -> str:
    start, end = training.get("start_validation_loss"), training.get("validation_loss")
    losses = "" if start is None or end is None else f"; loss on held-out pictures {start:.3f} before, {end:.3f} after"
    return f"{name} was trained on {counted(pictures, 'picture')} in {training['steps_done']} steps{losses}."
