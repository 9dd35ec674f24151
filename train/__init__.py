"""The training program: `python -m train --freeze=first6`."""
