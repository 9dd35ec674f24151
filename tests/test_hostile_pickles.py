"""Pickles made to hang, to fill memory or to crash are refused, in a process whose time and memory are bounded."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import forked
import pytest

import jaxgpt

pytestmark = pytest.mark.bounded

LOAD = """
import resource, sys
from jaxgpt import convert
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
try:
    convert.read(sys.argv[1])
except convert.InputError as error:
    print(str(error)[:3000])
else:
    print("read")
"""


def deep(n: int) -> bytes:
    """A tuple in a tuple in a tuple …"""
    return b")" + b"\x85" * n


def doubled(n: int) -> bytes:
    """A tuple of itself twice, n times over, by the memo: 2^n leaves in a few bytes."""
    return b"K\x01" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(n))


def storage(
    kind=b"X\x07\x00\x00\x00storage", of=b"ctorch\nFloatStorage\n", key=b"X\x01\x00\x00\x000", count=b"K\x04"
) -> bytes:
    return b"(" + kind + of + key + b"X\x03\x00\x00\x00cpu" + count + b"tQ"


def tensor(persistent: bytes, shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85") -> bytes:
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + b"K\x00" + shape + strides + b"\x89)tR"
    return b"}X\x01\x00\x00\x00a" + call + b"s"


PROGRAMS = {
    "a deep tuple as a key": b"}" + deep(400_000) + b"K\x01s",
    "a deep tuple as one of many keys": b"}(" + deep(200_000) + b"K\x01K\x02K\x03u",
    "a deep tuple in a set": b"\x8f(" + deep(400_000) + b"\x90",
    "a deep tuple in a frozen set": b"(" + deep(400_000) + b"\x91",
    "a deep tuple in the pairs of an OrderedDict": (
        b"ccollections\nOrderedDict\n(](" + deep(300_000) + b"K\x01\x86etR"
    ),
    "a deep tuple in a set by its name": b"cbuiltins\nset\n(](" + deep(300_000) + b"etR",
    "a deep tuple as a storage's type": tensor(storage(of=deep(300_000))),
    "a doubled tuple as a key": b"}" + doubled(34) + b"K\x01s",
    "a doubled tuple as a storage's kind": tensor(storage(kind=doubled(34))),
    "a doubled tuple as a storage's type": tensor(storage(of=doubled(34))),
    "a doubled tuple as a storage's key": tensor(storage(key=doubled(34))),
    "a doubled tuple as a storage's count": tensor(storage(count=doubled(34))),
    "a doubled tuple as a shape": tensor(storage(), shape=doubled(34)),
    "a doubled tuple as strides": tensor(storage(), strides=doubled(34)),
    "a doubled tuple as what is called": doubled(34) + b")R",
    "a doubled tuple as a class": doubled(34) + b")\x81",
    "a doubled tuple as arguments": b"ctorch\nSize\n" + doubled(34) + b"R",
    "a doubled tuple as a device": b"ctorch\ndevice\n(" + doubled(34) + b"tR",
    "a doubled tuple as a type of NumPy": b"cnumpy\ndtype\n(" + doubled(34) + b"tR",
    "a doubled list as a state": b"}" + b"]K\x01a" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(34)) + b"b",
    "many memos": b"}" + b"q\x01" * 10_000_000,
    "many dicts": b"}" * 20_000_000,
    "many marks": b"(" * 20_000_000,
    "many texts": b"X\x01\x00\x00\x00a" * 4_000_000,
    "a dict in itself, deep": b"}" + b"X\x01\x00\x00\x00a}" * 200_000 + b"s" * 200_000,
}


@pytest.mark.parametrize(
    ("form", "name"),
    [("zip", name) for name in PROGRAMS] + [("before 1.6", name) for name in PROGRAMS if "storage" in name],
)
def test_a_pickle_that_would_hang_or_crash_is_refused(tmp_path, form, name):
    program = b"\x80\x02" + PROGRAMS[name] + b"."
    if form == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("archive/data.pkl", program)
            file.writestr("archive/data/0", bytes(64))
        content = buffer.getvalue()
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
        content = b"".join(pickle.dumps(part, protocol=2) for part in head) + program
        content += pickle.dumps(["0"], protocol=2) + struct.pack("<q", 4) + bytes(16)
    file = Path(tmp_path / "model.pt")
    file.write_bytes(content)
    done = forked.run(LOAD, file, imports=forked.CONVERSION)
    assert done.returncode == 0, (done.returncode, done.stderr[-300:])
    assert done.stdout != "read\n"
    assert done.stdout.startswith(str(file))
    assert len(done.stdout) < 2000


@pytest.mark.parametrize("is_zip64", [False, True])
def test_a_directory_of_too_many_members_is_refused_by_its_size(tmp_path, is_zip64):
    """A million names would take seconds and half a gigabyte to be read and then counted."""
    n_bytes = 30_000_000
    zip64 = b"PK\6\6" + bytes(36) + n_bytes.to_bytes(8, "little") + bytes(8)
    end = b"PK\5\6" + bytes(8) + (2**32 - 1 if is_zip64 else n_bytes).to_bytes(4, "little") + bytes(6)
    (tmp_path / "model.pt").write_bytes(b"PK\3\4" + bytes(n_bytes) + zip64 * is_zip64 + end)
    with pytest.raises(jaxgpt.InputError, match="too many members"):
        jaxgpt.convert.read(tmp_path / "model.pt")
