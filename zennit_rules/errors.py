"""The one error class of this package: what was passed, where, and the way out."""


class RuleError(ValueError):
    """A rule, gate or rule set cannot do what was asked of it."""


class RuleWarning(UserWarning):
    """Something a rule leaves out, although it was probably meant."""
