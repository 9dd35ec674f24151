"""Texts and conversations on disk, and their tokens in a mapped cache."""
