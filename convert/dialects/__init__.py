"""One table per family of checkpoints."""
