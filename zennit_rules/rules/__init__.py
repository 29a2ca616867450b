"""The rules: how a signal passes back through one kind of call, one file each."""
