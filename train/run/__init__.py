"""A run on disk: its folder, run.json, logs and checkpoints."""
