"""Options that take one of a few words."""

from __future__ import annotations

from typing import Any

import click

from captum_learnprop.errors import did_you_mean


class OneOf(click.Choice):
    """A choice that says which word was probably meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the word itself."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            hint = did_you_mean(str(value), map(str, self.choices))
            raise click.BadParameter(error.message.rstrip(".") + hint, error.ctx, error.param) from None
