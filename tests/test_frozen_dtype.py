"""--frozen-dtype=bfloat16: kernels that never train take half the memory, and nothing that is written is rounded."""

import json
import shutil

import numpy as np
import pytest
from conftest import call
from runs import QUICK, arrays, assert_same_run, held, metrics

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.mapping import same


@pytest.fixture(scope="module", params=["lora:r=2", "gradual:lora:r=2@0,last1@50%"])
def runs(request, small, tmp_path_factory):
    """A run whose products are in bfloat16, and the same with frozen kernels in bfloat16."""
    folder = tmp_path_factory.mktemp("frozen")
    for dtype in ("float32", "bfloat16"):
        said = call(
            "train", f"--model={small}", f"--freeze={request.param}", "--dtype=bfloat16", f"--frozen-dtype={dtype}",
            f"--out={folder}/{dtype}", *QUICK,
        ).stdout  # fmt: skip
        assert ("rounded " in said) == (dtype == "bfloat16")
    return folder


def test_with_products_in_bfloat16_no_number_changes(runs):
    assert_same_run(runs / "bfloat16", runs / "float32", 9)
    assert {str(array.dtype) for array in held(runs / "bfloat16", 9, "params").values()} == {"float32"}


def test_it_resumes_and_exports_the_base_s_own_bits(runs, small, tmp_path):
    out = shutil.copytree(runs / "bfloat16", tmp_path / "run")
    for step in (8, 9):
        shutil.rmtree(out / "checkpoints" / str(step))
    call("train", "--resume", out)
    assert_same_run(out, runs / "float32", 9)
    call("convert", out, tmp_path / "peft-or-merged", "--to=orbax")
    written, base = convert.read(tmp_path / "peft-or-merged").params, convert.read(small).params
    trained = held(out, 9, "params").keys()
    assert len(base.keys() - trained) > 8
    assert all(same(np.asarray(written[name]), np.asarray(base[name])) for name in base.keys() - trained)


def test_in_float32_it_rounds_kernels_and_nothing_else(small, tmp_path):
    flags = (f"--model={small}", "--freeze=last1", "--frozen-dtype=bfloat16", "--dropout=0", *QUICK)
    said = call("train", *flags, f"--out={tmp_path}/run").stdout
    params = jaxgpt.named_params(jaxgpt.from_pretrained(small))
    n = sum(p.size for name, p in params.items() if name.startswith("blocks.0") and name.endswith("kernel"))
    assert f"rounded     {n:,} of the frozen ones, to bfloat16: " in said
    call("train", *(flag for flag in flags if "frozen" not in flag), f"--out={tmp_path}/plain")
    losses = [[line["loss"] for line in metrics(tmp_path / name)[1:]] for name in ("run", "plain")]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, atol=2e-3)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["frozen_dtype"] == "bfloat16"
    rest = arrays(tmp_path / "run", 9)
    assert all(str(array.dtype) == "float32" for name, array in rest.items() if name.startswith("params/"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--freeze=full"], "no kernel stays frozen"),
        (["--freeze=last1", "--standalone"], "--standalone would write that"),
        (["--freeze=last1", "--frozen-dtype=int8"], "--frozen-dtype"),
    ],
)
def test_what_can_t_be_is_refused(small, tmp_path, flags, says):
    flags = [f"--model={small}", "--frozen-dtype=bfloat16", *flags, *QUICK, f"--out={tmp_path}/run"]
    done = call("train", *flags, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
