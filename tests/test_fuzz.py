"""A short run of the fuzz targets without coverage; `tests/fuzz/run.py` is the long one."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import targets


@pytest.mark.bounded
@pytest.mark.parametrize("name", list(targets.seeds()))
def test_nothing_worse_than_our_own_error(name):
    target, seed, rng = getattr(targets, name), targets.seeds()[name], random.Random(0)
    target(seed)
    for _ in range(1500):
        data = bytearray(seed)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            where = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[where] = rng.randrange(256)
                case 1:
                    data[where] ^= 1 << rng.randrange(8)
                case 2:
                    del data[where : where + rng.choice((1, 2, 8, 64))]
                case 3:
                    data[where:where] = data[: rng.choice((1, 4, 32))]
                case 4:
                    data[where : where + 4] = rng.choice(
                        (b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"9999")
                    )
            data = data or bytearray(b"\0")
        target(bytes(data))
