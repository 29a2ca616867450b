"""The commands of ``learnprop``, one file each; a file is imported when its command is asked for."""
