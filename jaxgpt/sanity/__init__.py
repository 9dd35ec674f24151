"""Sanity checks of a loaded model: `jaxgpt.check`, and what it is made of."""
