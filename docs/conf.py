"""Settings of the documentation site; built by ``sphinx-build -W --keep-going -b html docs docs/_build``."""

from __future__ import annotations

import os
from importlib.metadata import version as installed_version

# Notebooks run on one thread each, so that a site takes as long on a busy machine as on a quiet one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "captum-learnprop"
author = "The captum-learnprop developers"
copyright = "the captum-learnprop developers, BSD-3-Clause"
release = installed_version("captum-learnprop")
version = ".".join(release.split(".")[:2])

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_build", "jupyter_execute", ".ipynb_checkpoints"]

# A single backtick in a docstring names something: it becomes a link where the site knows it, and code elsewhere.
default_role = "py:obj"

# A class that is exported at two places is one class: a link to either will do.
suppress_warnings = ["ref.python"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# A cell that fails, fails the site. Nothing is cached: what is shown is what this version gives.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
# Warnings of other libraries name places on the machine that built the site.
nb_output_stderr = "remove"
nb_kernel_rgx_aliases = {".*": "python3"}

html_theme = "furo"
html_title = f"captum-learnprop {version}"
html_static_path = ["_static"]
html_theme_options = {
    "source_repository": "https://github.com/captum-learnprop/captum-learnprop/",
    "source_branch": "main",
    "source_directory": "docs/",
}
