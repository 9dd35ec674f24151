"""python -m train: the same as `jaxgpt train`, wherever jaxgpt is installed and no other train.py is nearer."""

from jaxgpt.__main__ import train

if __name__ == "__main__":
    train()
