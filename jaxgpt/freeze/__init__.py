"""Freezing: which parameters train, and from when on; see `jaxgpt.freeze.plan`."""

from jaxgpt.freeze.plan import FROZEN, Phase, Plan, name_of, optimizer, parse, thaw
from jaxgpt.freeze.strategies import GRAMMAR

__all__ = ["FROZEN", "GRAMMAR", "Phase", "Plan", "name_of", "optimizer", "parse", "thaw"]
