"""Progress in logs."""

from __future__ import annotations

import pytest

from captum_learnprop.progress import Progress, duration, say


class TestProgress:
    def test_a_log_gets_a_line_now_and_then(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        now = [100.0]
        monkeypatch.setattr("captum_learnprop.progress.time.monotonic", lambda: now[0])
        with Progress(1000, "saliency") as progress:
            progress.advance(400, worked=False)
            for _ in range(100):
                now[0] += 1
                progress.advance(3)
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            "saliency: 490 of 1,000 images, 3 a second, 2 min 50 s left",
            "saliency: 580 of 1,000 images, 3 a second, 2 min 20 s left",
            "saliency: 670 of 1,000 images, 3 a second, 1 min 50 s left",
        ]
        with Progress(10, "other", shown=False) as progress:
            now[0] += 100
            progress.advance(1)
        assert capsys.readouterr().err == ""

    def test_durations(self) -> None:
        assert [duration(seconds) for seconds in (0.2, 59, 200, 15000)] == ["0 s", "59 s", "3 min 20 s", "4 h 10 min"]

    def test_other_units_and_an_unknown_total(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        now = [0.0]
        monkeypatch.setattr("captum_learnprop.progress.time.monotonic", lambda: now[0])
        with Progress(None, "training rules", unit="step") as progress:
            now[0] = 40.0
            progress.advance(20)
            progress.note("loss=1")
        assert capsys.readouterr().err == "training rules: 20 steps, 0.5 a second\n"

    def test_a_line_goes_to_the_log(self, capsys: pytest.CaptureFixture[str]) -> None:
        say("a line")
        assert capsys.readouterr() == ("", "a line\n")
