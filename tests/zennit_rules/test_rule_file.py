"""Files that changed since they were written: loaded right, or refused in one error."""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zennit_rules as zr
from captum_learnprop.training import checkpoint
from zennit_rules import rule_file

KEY = "captum-learnprop"
RUBBISH: list[Any] = [
    None, True, -1, 0, 10**12, 10**30, 1.5, float("nan"), "", "x", "\ud800\0", [], {}, [[]], {"a": 1}, [None], ["x"],
    [10**12], [1] * 50,
]  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ).eval()


OPTIONS: dict[str, dict[str, Any]] = {
    "gates": {"gate": "feature", "pooling": "soft", "gate_options": {"position": True}, "fusion": True},
    "lrp": {"rule_options": {"learn_bounds": True}},
    "deeplift": {"gate": "element"},
    "guided_backprop": {"gate": "quadrant", "per_sample": True},
    "rect_grad": {"rule_options": {"temperature": 0.5}},
    "attnlrp": {},
}
each_set = pytest.mark.parametrize("name", OPTIONS)


def written(name: str, folder: Path) -> Path:
    model = net()
    return zr.RuleSet.build(model, torch.rand(2, 1, 8, 8), name, **OPTIONS[name]).save(folder / "r.safetensors", model)


def taken_apart(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, document and data; the document without its checksum, as before there was one."""
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    document = json.loads(header["__metadata__"][KEY])
    del document["sha256"]
    return header, document, whole[8 + size :]


def put_together(path: Path, header: Any, data: bytes, document: Any = None) -> None:
    if document is not None:
        text = document if isinstance(document, str) else json.dumps(document)
        header = {**header, "__metadata__": {KEY: text}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values in a document are, each as a path of keys."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copied = list(value) if isinstance(value, list) else dict(value)
    copied[at[0]] = replaced(value[at[0]], at[1:], new)
    return copied


def loads(path: Path, model: nn.Module | None = None) -> bool:
    """Whether a file is loaded; if it is not, that must be one error that names it."""
    try:
        zr.RuleSet.load(path, model)
    except zr.RuleError as error:
        assert str(path) in str(error) or model is not None  # noqa: PT017 (either is right)
        return False
    return True


@each_set
class TestFuzz:
    def test_flipped_bits(self, name: str, tmp_path: Path) -> None:
        path, draw = written(name, tmp_path), random.Random(0)
        whole = path.read_bytes()
        rules = zr.RuleSet.load(path).state_dict()
        for at in draw.sample(range(len(whole)), 120):
            changed = bytearray(whole)
            changed[at] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            if loads(path):  # the name of the checksum was hit
                assert all(torch.equal(v, rules[k]) for k, v in zr.RuleSet.load(path).state_dict().items())

    def test_rubbish_in_the_document(self, name: str, tmp_path: Path) -> None:
        path, draw = written(name, tmp_path), random.Random(0)
        header, document, data = taken_apart(path)
        every = list(places(document))
        for at in draw.sample(every, min(60, len(every))):
            for new in draw.sample(RUBBISH, 4):
                put_together(path, header, data, replaced(document, at, new))
                loads(path)

    def test_rubbish_in_the_header(self, name: str, tmp_path: Path) -> None:
        path, draw = written(name, tmp_path), random.Random(0)
        header, _, data = taken_apart(path)
        for at in places(header):
            put_together(path, replaced(header, at, draw.choice(RUBBISH)), data)
            loads(path)

    def test_a_huge_shape_takes_no_memory(self, name: str, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource", reason="limits of memory are those of Unix")
        path = written(name, tmp_path)
        header, document, data = taken_apart(path)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for index, site in enumerate(document["sites"]):
            for dim in range(len(site["shape"])):
                for size in (10**8, 10**12, 2**62):
                    put_together(path, header, data, replaced(document, ("sites", index, "shape", dim), size))
                    loads(path)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
        assert grown < 100 * 2**20 // (1 if sys.platform == "darwin" else 1024)

    def test_saving_is_deterministic(self, name: str, tmp_path: Path) -> None:
        first = written(name, tmp_path).read_bytes()
        assert written(name, tmp_path).read_bytes() == first


class TestRefused:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return written("gates", tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: "[" * 100_000, "RecursionError"),
            (lambda d: "[1, 2]", "its document is a list"),
            (lambda d: "NaN", "its document is a float"),
            (lambda d: d | {"sites": [*d["sites"], d["sites"][0]]}, "site '1' is there twice"),
            (lambda d: replaced(d, ("sites", 0, "kind"), "activatiom"), "unknown kind 'activatiom'"),
            (lambda d: replaced(d, ("sites", 0, "shape"), [2, 4, 6, 6]), r"parameters of shapes .*, the file"),
            (lambda d: replaced(d, ("sites", 0, "shape", 0), True), "has the shape"),
            (lambda d: replaced(d, ("sites", 0, "channel_dim"), 4), "channels in dimension 4"),
            (lambda d: d | {"config": {**d["config"], "rules": "/etc/passwd"}}, r"the configuration has \['rules'\]"),
            (lambda d: d | {"config": {**d["config"], "fusion": ["nowhere"]}}, "nowhere"),
            (lambda d: d | {"format_version": True}, "format version is True"),
        ],
    )
    def test_documents(self, path: Path, change: Callable[[Any], Any], message: str) -> None:
        header, document, data = taken_apart(path)
        put_together(path, header, data, document)
        assert loads(path, net())
        put_together(path, header, data, change(document))
        with pytest.raises(zr.RuleError, match=rf"r\.safetensors is damaged.*{message}.*save the rule set again"):
            zr.RuleSet.load(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_parameters_that_are_no_numbers(self, path: Path, value: float) -> None:
        header, document, data = taken_apart(path)
        put_together(path, header, data[:-4] + struct.pack("<f", value), document)
        with pytest.raises(zr.RuleError, match=r"::\w+ has 1 values that are NaN or infinite"):
            zr.RuleSet.load(path)
        rules = zr.RuleSet.build(net(), torch.rand(2, 1, 8, 8))
        with torch.no_grad():
            rules.parameters()[0].fill_(value)
        with pytest.raises(zr.RuleError, match=r"cannot write .*other.*: parameter 1::raw has 3 values"):
            rules.save(path.with_name("other.safetensors"))
        assert not path.with_name("other.safetensors").exists()

    def test_parameters_of_another_type(self, path: Path) -> None:
        header, document, data = taken_apart(path)
        name = next(key for key in header if "::" in key)
        put_together(path, replaced(header, (name, "dtype"), "I32"), data, document)
        with pytest.raises(zr.RuleError, match=r"of type torch\.int32"):
            zr.RuleSet.load(path)

    def test_a_changed_file_says_so(self, path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(zr.RuleError, match=r"do not have the checksum .*save the rule set again"):
            zr.RuleSet.load(path)

    def test_options_that_came_later_are_the_defaults(self, tmp_path: Path) -> None:
        path = written("lrp", tmp_path)
        header, document, data = taken_apart(path)
        for option in ("merge", "first"):
            del document["config"]["rule_options"][option]
        put_together(path, header, data, document)
        rules = zr.RuleSet.load(path, net())
        assert rules.config["rule_options"]["merge"] is True
        with rules.applied(net()) as composite:
            assert composite.rules is rules


class TestCheckpoints:
    """They are read with the same care."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "run.safetensors"
        state = checkpoint.TrainingState(
            3,
            {"a::raw": torch.ones(2)},
            {"0/exp_avg": torch.ones(2)},
            {"a::raw": torch.zeros(2)},
            2,
            [0.5],
            1,
            [{"a": 1.0}],
        )
        checkpoint.write(path, state, {"lr": 0.1})
        return path

    def test_flipped_bits(self, path: Path) -> None:
        whole, expected = path.read_bytes(), checkpoint.read(path, {"lr": 0.1})
        for at in range(len(whole)):
            changed = bytearray(whole)
            changed[at] ^= 1
            path.write_bytes(changed)
            try:
                found = checkpoint.read(path, {"lr": 0.1})
            except checkpoint.CheckpointError:
                continue
            assert (found.step, found.rows, found.lowest) == (expected.step, expected.rows, expected.lowest)
            assert torch.equal(found.rules["a::raw"], expected.rules["a::raw"])

    def test_rubbish(self, path: Path) -> None:
        document, tensors = rule_file.read(path, "learnprop-checkpoint", "a checkpoint")
        for at in places(document):
            for new in RUBBISH:
                changed = replaced(document, at, new)
                if isinstance(changed, dict):
                    rule_file.write(path, "learnprop-checkpoint", changed, tensors)
                    try:
                        checkpoint.read(path, {"lr": 0.1})
                    except checkpoint.CheckpointError as error:
                        assert str(path) in str(error)  # noqa: PT017 (either is right)
