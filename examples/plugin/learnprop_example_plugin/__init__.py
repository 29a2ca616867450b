"""An example of a plugin for captum-learnprop."""
