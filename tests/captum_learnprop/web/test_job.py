from __future__ import annotations

import threading

import pytest

from captum_learnprop.errors import LearnpropError
from captum_learnprop.web.job import Cancelled, Job


def test_result_and_progress() -> None:
    go_on = threading.Event()

    def work(job: Job[int]) -> int:
        job.note(0.5, "half")
        go_on.wait(10)
        job.note(2.0, "done")
        return 7

    job = Job(work, "the work")
    while job.wait(0.01).words == "starting":
        pass
    assert (job.wait(0.0).share, job.running) == (0.5, True)
    go_on.set()
    assert job.result() == 7
    assert (job.wait(0.0).share, job.running) == (1.0, False)


def test_cancel_ends_it_where_it_looks() -> None:
    begun = threading.Event()

    def work(job: Job[None]) -> None:
        while True:
            begun.set()
            job.note(0.1, "on and on")

    job = Job(work, "the work")
    begun.wait(10)
    job.cancel()
    with pytest.raises(Cancelled, match="the work was cancelled; nothing of it was kept"):
        job.result()


@pytest.mark.parametrize(
    ("error", "said"),
    [(LearnpropError("too few"), "^too few$"), (RuntimeError("oh"), "^the work failed: RuntimeError: oh$")],
)
def test_errors_are_told(error: Exception, said: str) -> None:
    def work(job: Job[None]) -> None:
        raise error

    with pytest.raises(LearnpropError, match=said):
        Job(work, "the work").result()
