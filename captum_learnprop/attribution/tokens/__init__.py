"""Methods for vision transformers, on the tokens of their patches."""
