"""What the library logs, as the command line shows it."""

from __future__ import annotations

import logging

import pytest

from captum_learnprop.commands._log import logs_shown
from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.errors import LearnpropError


def test_warnings_are_one_line_and_the_rest_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("captum_learnprop.training.run")
    with logs_shown():
        logger.warning("%d images are %s", 2, "grey")
        logger.info("validation loss 0.5")
    assert capsys.readouterr().err == "warning: 2 images are grey\n"
    assert logging.getLogger("captum_learnprop").handlers == []


def test_mistakes_of_the_user_are_one_kind_of_error() -> None:
    with pytest.raises(LearnpropError, match=r"^AssertionError$") as error, users_mistakes():
        raise AssertionError
    assert isinstance(error.value.__cause__, AssertionError)
    with pytest.raises(KeyError), users_mistakes():
        raise KeyError("a fault of the program")
    ours = LearnpropError("as it is")
    with pytest.raises(LearnpropError) as error, users_mistakes():
        raise ours
    assert error.value is ours
