"""Options of methods that are options of ``learnprop attribute`` itself."""

from __future__ import annotations

FLAGS = {
    "rule_options": "--rule-option", "n_steps": "--steps", "inputs": "--images", "forward_func": "--model",
}  # fmt: skip
"""The options of methods that have another name here."""

OWN = (*FLAGS, "model", "composite", "gate", "start", "pooling", "rules", "seed", "target")
"""The options of methods that have an option here."""
