"""Names that moved within ``zennit_rules`` are found where they were, with a warning."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("zennit_rules.core.sites.ACTIVATION_TYPES", "zennit_rules.core.site_functions.ACTIVATION_TYPES"),
        ("zennit_rules.core.sites.is_pooling", "zennit_rules.core.site_functions.is_pooling"),
        ("zennit_rules.core.linear_map.linear_operands", "zennit_rules.core.linear_calls.linear_operands"),
        ("zennit_rules.rules.relevance.unkept_nodes", "zennit_rules.rules.relevance_nodes.unkept_nodes"),
        ("zennit_rules.rules.linear.ruled", "zennit_rules.rules.linear.call_by_rule"),
        ("zennit_rules.rules.attention.pulled", "zennit_rules.rules.attention.vector_jacobian_products"),
    ],
)
def test_old_names(old: str, new: str) -> None:
    (old_module, _, old_name), (module, _, name) = old.rpartition("."), new.rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"{old_name} is .*{name} now"):
        found = getattr(import_module(old_module), old_name)
    assert found is getattr(import_module(module), name)


@pytest.mark.parametrize("module", ["core.sites", "core.linear_map", "rules.relevance"])
def test_other_names_are_none(module: str) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = import_module(f"zennit_rules.{module}").nothing
