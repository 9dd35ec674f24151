"""Evaluation: the loss of a text, and the likelihood of continuations."""
