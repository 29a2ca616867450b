"""Freed memory is kept by the program, and by nothing that is merely imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from captum_learnprop.commands import _memory

PAGES = """
import resource, sys
import torch
if sys.argv[1] == "kept":
    from captum_learnprop.commands._memory import keep_freed_memory
    assert keep_freed_memory()
big = lambda: torch.zeros(10_000_000)
big()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(80):
    big()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(which: str) -> int:
    done = subprocess.run([sys.executable, "-c", PAGES, which], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_a_freed_block_is_used_again_without_new_pages() -> None:
    assert faults("kept") * 10 < faults("given back")


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not _memory.keep_freed_memory()
