"""python -m convert: the same as `jaxgpt convert`, wherever jaxgpt is installed and no other convert.py is nearer."""

from jaxgpt.__main__ import convert

if __name__ == "__main__":
    convert()
