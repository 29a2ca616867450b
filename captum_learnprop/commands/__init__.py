"""The commands of ``learnprop``, one file each; a file is imported when its command is asked for.

A command's file holds options and what can be checked without torch; the work is in a file that begins with ``_``.
"""

# A command imports its work inside its function: torch takes seconds, and help and wrong usage must not wait for it.
# `tests/test_arrows.py` allows such an import here alone, and of such files only.
