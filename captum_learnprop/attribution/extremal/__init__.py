"""Extremal perturbations: smooth masks of a given area under which the output is highest."""
