"""python -m train: the same as `jaxgpt train`, wherever jaxgpt is installed and no other train.py is nearer."""

from jaxgpt.train.__main__ import main

if __name__ == "__main__":
    main()
