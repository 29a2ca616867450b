"""One "did you mean" for both packages; the command line does not wait for torch to have it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from captum_learnprop import errors
from zennit_rules.core import names


@pytest.mark.parametrize("did_you_mean", [names.did_you_mean, errors.did_you_mean])
def test_values(did_you_mean: object) -> None:
    assert callable(did_you_mean)
    assert did_you_mean("salincy", ["saliency", "cdam"]) == "; did you mean 'saliency'?"
    assert did_you_mean("default", ["DEFAULT", "Default"]) == "; did you mean 'DEFAULT' or 'Default'?"
    assert did_you_mean(".PN", (name for name in (".png", ".pt"))).startswith("; did you mean '.png'")
    assert did_you_mean("xyz", ["channel"]) == did_you_mean(3, ["channel"]) == did_you_mean("x", []) == ""


def test_errors_do_not_import_torch() -> None:
    code = "import sys, captum_learnprop.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
