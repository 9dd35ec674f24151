"""The moving average of what trains: its recursion, through phases and resumes, evaluated and taken out of a run."""

import shutil

import numpy as np
import pytest
from conftest import call
from runs import QUICK, arrays, assert_same_run, held, metrics

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.mapping import same
from jaxgpt.params import named_params

DECAY = 0.75
LAST1, LORA = ("blocks.1.", "ln_f."), ".lora_"


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """Nine steps in two phases, each kept, and the same ones without an average."""
    folder = tmp_path_factory.mktemp("ema")
    flags = [f"--model={small}", *QUICK, "--freeze=gradual:lora:r=2@0,last1@4", "--checkpoint-every=1"]
    flags = [*flags, "--keep=9", "--weight-decay=0.1", "--lr=1e-2"]
    said = call("train", *flags, f"--ema={DECAY}", f"--out={folder}/run", samples=False).stdout
    call("train", *flags, "--checkpoint-every=9", f"--out={folder}/plain", samples=False)
    return folder, said


def test_it_is_the_recursion_over_the_parameters_of_each_step(whole):
    folder, _ = whole
    average: dict[str, np.ndarray] = {}
    names, now = set(named_params(jaxgpt.from_pretrained(folder / "run"))), {}
    for step in range(1, 10):
        before, now = now, arrays(folder / "run", step)
        found = held(folder / "run", step, "ema")
        for name, p in found.items():
            if step == 1:  # the parameters before the first step are in no checkpoint
                break
            start = average.get(name, before[f"params/{name}"])
            average[name] = start + np.float32(1 - DECAY) * (now[f"params/{name}"] - start)
            assert p.dtype == np.float32
            assert np.abs(p - average[name]).max() <= 1e-6 * max(1, np.abs(p).max()), (step, name)
        if step == 1:
            average = dict(found)
        thawed = {n for n in names if LORA in n or (step > 4 and n.startswith(LAST1))}
        assert found.keys() == thawed, step
    for name in average:  # it lags behind
        assert not same(average[name], now[f"params/{name}"]) or not average[name].any(), name


def test_the_first_step_moves_it_from_where_training_began(small, tmp_path):
    flags = [f"--model={small}", *QUICK, "--freeze=last1", "--steps=1", "--ema=0.75"]
    call("train", *flags, f"--out={tmp_path}/run", samples=False)
    begin = named_params(jaxgpt.from_pretrained(small))
    after, average = arrays(tmp_path / "run", 1), held(tmp_path / "run", 1, "ema")
    assert average.keys() == {name for name in begin if name.startswith(LAST1)}
    for name, p in average.items():
        start = np.asarray(begin[name])
        np.testing.assert_allclose(p - start, 0.25 * (after[f"params/{name}"] - start), rtol=1e-3, atol=1e-7)


def test_what_trains_is_the_same_with_it_and_without(whole):
    folder, _ = whole
    with_it, without = arrays(folder / "run", 9), arrays(folder / "plain", 9)
    assert with_it.keys() == without.keys()
    assert all(same(with_it[name], without[name]) for name in without)
    lines, plain = metrics(folder / "run"), metrics(folder / "plain")
    averaged = [line.pop("ema_eval_loss", None) for line in lines]
    assert lines == plain
    assert [step for step, loss in enumerate(averaged) if loss is not None] == [0, 4, 8, 9]
    assert averaged[0] == lines[0]["eval_loss"]
    assert averaged[9] != lines[9]["eval_loss"]
    kept = {path.name for path in (folder / "run" / "checkpoints" / "9").iterdir()}
    assert kept - {path.name for path in (folder / "plain" / "checkpoints" / "9").iterdir()} == {"ema"}


@pytest.mark.parametrize("step", [3, 4, 7])
def test_it_resumes_bitwise_before_at_and_after_a_boundary(whole, tmp_path, step):
    folder, _ = whole
    shutil.copytree(folder / "run", tmp_path / "run")
    for later in range(step + 1, 10):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(later))
    call("train", "--resume", tmp_path / "run", "--checkpoint-every=9", samples=False)
    assert_same_run(tmp_path / "run", folder / "run", 9)
    ours, theirs = (held(run / "run", 9, "ema") for run in (tmp_path, folder))
    names = named_params(jaxgpt.from_pretrained(folder / "run"))
    assert ours.keys() == theirs.keys() == {n for n in names if LORA in n or n.startswith(LAST1)}
    assert all(same(ours[name], theirs[name]) for name in theirs)


def test_every_reader_takes_it_and_the_frozen_rest_of_the_base(small, whole, tmp_path):
    folder, said = whole
    step = folder / "run" / "checkpoints" / "6"  # two phases have begun
    average = held(folder / "run", 6, "ema")
    read, plain = convert.read(step, averaged=True), convert.read(step)
    base = named_params(jaxgpt.from_pretrained(small))
    loaded = named_params(jaxgpt.from_pretrained(step, averaged=True))
    assert read.params.keys() == plain.params.keys() == loaded.keys()
    for name, p in read.params.items():
        expected = average[name] if name in average else np.asarray(base[name])
        assert same(np.asarray(p), expected), name
        assert same(np.asarray(loaded[name]), expected), name
    call("convert", folder / "run", tmp_path / "hf", "--to=hf", "--averaged")
    merged = named_params(jaxgpt.merge_lora(jaxgpt.from_pretrained(folder / "run", averaged=True)))
    exported = named_params(jaxgpt.from_pretrained(tmp_path / "hf"))
    assert all(np.abs(np.asarray(exported[name]) - np.asarray(p)).max() <= 1e-6 for name, p in merged.items())
    losses = metrics(folder / "run")[-1]
    assert f"{losses['ema_eval_loss']:.4f} with averaged weights" in said
    assert f"jaxgpt convert {folder}/run" in said
    assert "--averaged" in said
    generate = ["jaxgpt", "generate", "--max-new-tokens=5", "--temperature=0"]
    ours = call(*generate, folder / "run", "--averaged").stdout
    assert ours == call(*generate, tmp_path / "hf").stdout
    halves = named_params(jaxgpt.from_pretrained(step, averaged=True, param_dtype="bfloat16"))
    assert {name: str(p.dtype) for name, p in halves.items()} == {
        name: "float32" if LORA in name else "bfloat16" for name in halves
    }


def test_a_run_begins_as_the_average_of_another(whole, tmp_path):
    folder, _ = whole
    flags = [*QUICK, "--steps=1", "--freeze=head", "--averaged"]
    call("train", f"--model={folder}/run", *flags, f"--out={tmp_path}/next", samples=False)
    merged = named_params(jaxgpt.merge_lora(jaxgpt.from_pretrained(folder / "run", averaged=True)))
    found = named_params(jaxgpt.from_pretrained(tmp_path / "next"))
    assert all(same(np.asarray(found[name]), np.asarray(p)) for name, p in merged.items() if "emb" not in name)


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_where_there_is_no_average_it_is_refused(small, whole, kind):
    folder, _ = whole
    model, says = (folder / "plain", "the run kept no average") if kind == "run" else (small, "this is not one")
    done = call("convert", model, "--averaged", check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
