"""The lines of Python that make the maps of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import printable
from captum_learnprop.web.offered import ModelChoice
from captum_learnprop.web.visit import Shot, Visit


@dataclass(frozen=True)
class ConceptLines:
    """What the lines of a concept say.

    Attributes:
        shots: Its pictures.
        similarity: ``"dot"`` or ``"cosine"``.
    """

    shots: Sequence[Shot]
    similarity: str


def python_lines(visit: Visit) -> str:
    """Returns a program that makes the maps of the chosen class and saves them.

    Pictures and trained rules that came from the browser are named by their files, which lie where the program is run.

    Args:
        visit: What is looked at, with the methods that are chosen.
    """
    choice, shot = visit.model.choice, visit.seen
    names = [f"{name}.safetensors" if name in visit.trained else name for name in visit.methods]
    target = visit.target
    arguments = [
        repr(choice.spec),
        "picture",
        f"{target!r},  # {printable(visit.model.names[target])}"
        if target is not None
        else "None,  # the highest class",
        repr(names),
        *_options(choice),
    ]
    if visit.sign is not None:
        arguments.append(f"sign={visit.sign!r}")
    return "\n".join([
        *_imports(choice, [shot]),
        "import captum_learnprop as cl",
        *_example_import([shot]),
        "",
        *_seeded(choice),
        f"picture = {_picture(shot)}",
        *_call("found = cl.explain", arguments),
        'found.save("explanation.png")',
    ]) + "\n"  # fmt: skip


def concept_lines(visit: Visit, concept: ConceptLines) -> str:
    """Returns a program that makes the map of a concept and saves it."""
    choice, shot = visit.model.choice, visit.seen
    shots = [shot, *concept.shots]
    given = ["embedding", "picture", "concept", "'CDAM'", "preprocessing=known.prepare"]
    if visit.sign is not None:
        given.append(f"sign={visit.sign!r}")
    return "\n".join([
        "import torch",
        "",
        "import captum_learnprop as cl",
        "from captum_learnprop.explanation.framing import framed",
        "from captum_learnprop.explanation.known_model import known_model",
        "from captum_learnprop.explanation.pictures import picture_of",
        *_example_import(shots),
        "",
        *_seeded(choice),
        *_call("known = known_model", [repr(choice.spec), *_options(choice)]),
        f"picture = {_picture(shot)}",
        *_call("shown =", [_picture(one) for one in concept.shots], "[]"),
        "embedding = cl.Embedding(known.net)",
        "images = torch.cat([framed(picture_of(one), known.prepare).input for one in shown])",
        f"concept = cl.Concept.of(embedding, images, similarity={concept.similarity!r})",
        *_call("found = cl.explain", given),
        'found.save("concept.png")',
    ]) + "\n"  # fmt: skip


def _call(opened: str, arguments: Sequence[str], brackets: str = "()") -> list[str]:
    space = " " if brackets == "[]" else ""
    lines = [f"    {one}" if ",  #" in one else f"    {one}," for one in arguments]
    return [f"{opened}{space}{brackets[0]}", *lines, brackets[1]]


def _imports(choice: ModelChoice, shots: Sequence[Shot]) -> list[str]:
    return ["import torch", ""] if choice.random else []


def _example_import(shots: Sequence[Shot]) -> list[str]:
    known = any(shot.example for shot in shots)
    return ["from captum_learnprop.web.examples import example_picture"] if known else []


def _seeded(choice: ModelChoice) -> list[str]:
    return [f"torch.manual_seed({choice.seed})  # the weights are random"] if choice.random else []


def _picture(shot: Shot) -> str:
    return f"example_picture({shot.name!r})" if shot.example else repr(shot.name)


def _options(choice: ModelChoice) -> list[str]:
    return [f"{name}={_plain(value)}" for name, value in choice.options.items() if value is not None]


def _plain(value: object) -> str:
    if isinstance(value, (str, int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)) and all(isinstance(one, (str, int, float)) for one in value):
        return repr(tuple(value))
    if hasattr(value, "__fspath__"):
        return repr(str(value))
    raise LearnpropError(f"{value!r} cannot be written as a line of Python")
