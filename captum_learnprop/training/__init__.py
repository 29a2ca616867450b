"""Training: objectives, masks and the trainer that learns shared rules of every family."""
