"""The commands of ``learnprop``: a file with the options of each, and beside it one with an underscore for the work.

Importing torch takes seconds, which help and listings must not wait for. So a command's file imports nothing that needs
torch, and its function imports the file of the work, whose own imports all stand at its top.
"""
