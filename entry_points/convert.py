"""python -m convert: the same as `jaxgpt convert`, wherever jaxgpt is installed and no other convert.py is nearer."""

from jaxgpt.convert.__main__ import main

if __name__ == "__main__":
    main()
