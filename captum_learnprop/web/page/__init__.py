"""The page itself, in Gradio: what is where, what a click does, and the server. Needs the extra ``[web]``."""
