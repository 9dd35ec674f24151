"""What each option of training does, seen in what a run writes."""

import html
import json
import re
from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import call, random_tokens
from runs import arrays, metrics

import jaxgpt
import jaxgpt.training.data.device_batches as batches
from jaxgpt import named_params
from jaxgpt.convert.mapping import same
from jaxgpt.convert.source import complete_steps
from jaxgpt.training.command import as_flags, read_command
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.settings import Settings, stored_settings, to_json
from jaxgpt.training.step.batch import Batch, micro_batches
from jaxgpt.training.step.step import Objective, TrainState

BASE = (
    "--freeze=first1", "--steps=4", "--batch-size=8", "--eval-every=2", "--checkpoint-every=4", "--log-every=1",
    "--lr=1e-2",
)  # fmt: skip


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "some.txt"
    path.write_text("In the beginning was the word, and the word was long. " * 120)
    return path


@pytest.fixture
def train(small, texts, tmp_path):
    """Runs the program, and gives the folder and what it said."""

    def run(*flags, name="other", **how):
        out = tmp_path / name
        done = call(
            "train", f"--model={small}", f"--data={texts}", f"--out={out}", *BASE, *flags, **{"samples": False} | how
        )
        return out, done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def base(small, texts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("options") / "base"
    call("train", f"--model={small}", f"--data={texts}", f"--out={out}", *BASE, samples=False)
    return out


@pytest.fixture(scope="session")
def flat(small, texts, tmp_path_factory) -> Path:
    """A run without dropout, which draws anew for each part of a batch."""
    out = tmp_path_factory.mktemp("options") / "flat"
    call("train", f"--model={small}", f"--data={texts}", f"--out={out}", *BASE, "--dropout=0", samples=False)
    return out


def losses(folder: Path, field: str = "loss") -> list[float]:
    return [line[field] for line in metrics(folder) if line[field] is not None]


# the same run by another way


@pytest.mark.parametrize("flags", [["--workers=5"], ["--remat"], ["--accumulate=2"], ["--accumulate=8"]], ids=str)
def test_what_must_not_change_the_run_does_not(train, flat, flags):
    out, _ = train(*flags, "--dropout=0")
    for field in ("loss", "eval_loss", "grad_norm"):
        assert np.allclose(losses(out, field), losses(flat, field), rtol=1e-5, atol=1e-5), field
    ours, theirs = arrays(out, 4), arrays(flat, 4)
    for name in ours:
        if "c_attn.bias" not in name:  # the keys' has no gradient, and Adam makes steps of its rounding
            assert np.allclose(ours[name], theirs[name], rtol=1e-3, atol=2e-5), name
        assert same(ours[name], theirs[name]) or flags != ["--workers=5"], name


def test_gradients_are_accumulated_for_what_trains_only_and_weigh_tokens_not_parts():
    config = jaxgpt.GPTConfig(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, n_inner=16)
    model = jaxgpt.GPT(config, rngs=jaxgpt.model.gpt.nnx.Rngs(0))
    trainable, frozen = jaxgpt.freeze.parse("last1", config).partition(named_params(model))
    state = TrainState(jnp.int32(0), trainable, frozen, None)
    weights = np.ones((8, 12), np.float32)
    weights[1::2, 3:] = 0  # every other part counts far fewer tokens
    batch = Batch(random_tokens((8, 13), 50), weights)
    found = {n: Objective(accumulate=n).loss_and_grads(model, state, batch, None) for n in (1, 2, 4)}
    for n in (2, 4):
        assert np.allclose(found[n][0][0], found[1][0][0], rtol=1e-6)
        assert found[n][1].keys() == trainable.keys()
        for name, grad in found[n][1].items():
            assert np.allclose(grad, found[1][1][name], rtol=1e-4, atol=1e-7), name

    def sums(n):
        jaxpr = jax.make_jaxpr(lambda s, b: Objective(accumulate=n).loss_and_grads(model, s, b, None))(state, batch)
        (scan,) = (equation for equation in jaxpr.eqns if equation.primitive.name == "scan")
        return [variable.aval.shape for variable in scan.outvars]

    assert sorted(sums(4)) == sorted([(), *(p.shape for p in trainable.values())])


def test_parts_of_a_batch_keep_the_rows_of_each_device():
    parts = micro_batches(Batch(np.arange(8)[:, None]), 2)
    assert parts.tokens[..., 0].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_workers_are_grain_s_threads_and_log_every_is_how_often_lines_are_shown(train, monkeypatch):
    asked = []
    real = batches.grain.ReadOptions
    monkeypatch.setattr(batches.grain, "ReadOptions", lambda **how: asked.append(how) or real(**how))
    out, text = train("--workers=3", "--log-every=3", "--eval-every=4")
    assert [how["num_threads"] for how in asked] == [3]
    assert [line["step"] for line in metrics(out)] == [0, 1, 2, 3, 4]  # a picture of a short run needs them all
    assert re.findall(r"^step (\d)/4", text, re.M) == ["3", "4"]


# another run


def test_lr_warmup_decay_and_clip_reach_the_optimizer(train, base):
    columns = {"--lr=2e-2": "lr", "--warmup=0.9": "lr", "--weight-decay=5": None, "--clip=0.001": None}
    before = arrays(base, 4)
    for flag, column in columns.items():
        out, _ = train(flag, "--force")
        if column:
            assert losses(out, column) != losses(base, column), flag
        after = arrays(out, 4)
        assert any(not same(before[name], after[name]) for name in before), flag
        assert losses(out)[0] == losses(base)[0], flag  # the first step sees the same batch and weights


def test_seed_and_context_and_batch_size_are_other_batches(train, base):
    for flag in ("--seed=1", "--context=16", "--batch-size=4"):
        out, _ = train(flag, "--force")
        assert losses(out)[0] != losses(base)[0], flag


def test_dropout_is_what_is_asked_for(train, base, flat):
    out, _ = train("--dropout=0.5")
    assert len({losses(run)[0] for run in (out, base, flat)}) == 3  # the checkpoint's own is 0.1
    assert jaxgpt.from_pretrained(out).config.attn_pdrop == 0.5
    assert losses(out, "eval_loss")[0] == losses(base, "eval_loss")[0]


def test_label_smoothing_is_in_training_only(train, base):
    out, _ = train("--label-smoothing=0.3")
    assert losses(out)[0] != losses(base)[0]
    assert losses(out, "eval_loss")[0] == losses(base, "eval_loss")[0]


def test_epochs_are_passes_over_the_rows(train):
    out, text = train("--epochs=2", "--steps=None")
    rows = json.loads((out / "run.json").read_text())["data"]["rows"]
    assert metrics(out)[-1]["step"] == -(-2 * rows // 8)
    _, text = train("--epochs=2", name="both", check=False)
    assert "--steps and --epochs contradict each other" in text


def test_patience_stops_early_and_the_best_checkpoint_stays(train, tmp_path):
    flags = ("--steps=40", "--eval-every=1", "--lr=1", "--patience=3", "--keep=1", "--checkpoint-every=100")
    out, text = train(*flags, report=True)
    evaluations = losses(out, "eval_loss")[1:]
    best = int(np.argmin(evaluations)) + 1
    assert len(evaluations) == best + 3 < 40
    assert "stopped early, after 3 evaluations without a better one" in text
    assert f"best: {min(evaluations):.3f} at step {best}, {out}/checkpoints/{best}" in text
    assert complete_steps(out) == [best, best + 3]
    assert jaxgpt.from_pretrained(out / "checkpoints" / str(best)).config.n_layer == 2
    _, text = train(*flags, "--resume")
    assert f"no better evaluation after step {best + 3}" in text
    assert "<h1>" in (out / "report.html").read_text()


def test_prompt_begins_the_samples_and_the_cache_is_where_it_is_asked_for_and_is_used_again(train, tmp_path):
    out, _ = train("--prompt=A king", f"--cache={tmp_path}/tokens", samples=True)
    assert (out / "samples.md").read_text().count("A king") >= 2
    (entry,) = (tmp_path / "tokens").iterdir()
    before = (entry / "tokens.bin").stat().st_mtime_ns
    train(f"--cache={tmp_path}/tokens", "--force", "--steps=1")
    assert (entry / "tokens.bin").stat().st_mtime_ns == before


def test_eval_data_is_what_is_evaluated_on_and_tokenizer_is_taken_from_where_it_is_said(train, small, base, tmp_path):
    (tmp_path / "held.txt").write_text("Other words, of which none were trained on. " * 40)
    tokenizer = jaxgpt.load_tokenizer(small)
    tokenizer.chat_template = "mine"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out, text = train(f"--eval-data={tmp_path}/held.txt", f"--tokenizer={tmp_path}/tokenizer")
    assert jaxgpt.load_tokenizer(out).chat_template == "mine"
    assert losses(out, "eval_loss")[0] != losses(base, "eval_loss")[0]
    facts = json.loads((out / "run.json").read_text())["data"]
    assert facts["held_out"] != json.loads((base / "run.json").read_text())["data"]["held_out"]
    assert f"{facts['train']:,} tokens to train on, {facts['held_out']:,} held out" in text


# going on, and again


def test_how_records_are_read_is_said_before_the_first_step_and_belongs_to_the_run(train, tmp_path):
    words = "In the beginning was the word, and the word was long. " * 9
    lines = [json.dumps({"content": words, "id": i}) for i in range(20)]
    (tmp_path / "records.json").write_text("\n".join([*lines, '{"content": 3}']))
    flags = (f"--data={tmp_path}/records.json", "--text-field=content", "--steps=1")
    refused = train(*flags, check=False)[1]
    assert "records.json, line 21: 'content' must be a string, not int (--skip-bad-records leaves" in " ".join(
        refused.split()
    )
    out, said = train(*flags, "--skip-bad-records")
    before = " ".join(said[: said.index("step 1/1")].split())
    assert before.count("records fields that are not read: 'id' in 20 records") == 1
    assert before.count("records 1 bad record is left out: ") == 1
    assert "'content' must be a string, not int" in before
    info = json.loads((out / "run.json").read_text())
    assert info["data"]["notes"][0] == "fields that are not read: 'id' in 20 records"
    with pytest.raises(jaxgpt.InputError, match="--text-field was content and is id"):
        read_command(["--resume", str(out), "--text-field=id"])
    with pytest.raises(jaxgpt.InputError, match="--skip-bad-records was True and is False"):
        read_command(["--resume", str(out), "--no-skip-bad-records"])


def test_config_repeats_a_run_and_flags_have_the_last_word(base, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    call("train", f"--config={base}/run.json", f"--out={again}", samples=False)
    assert metrics(again) == metrics(base)
    ours, theirs = arrays(again, 4), arrays(base, 4)
    assert ours.keys() == theirs.keys()
    assert all(same(array, theirs[name]) for name, array in ours.items())
    call("train", "--config", base / "run.json", f"--out={other}", "--steps=2", samples=False)
    assert metrics(other)[-1]["step"] == 2
    assert json.loads((other / "run.json").read_text())["settings"]["freeze"] == "first1"


def test_every_setting_survives_the_way_through_run_json_and_flags():
    odd = Settings(
        data="my data.txt", freeze="gradual:head@0,full@50%", untie_head=True, add_tokens="<|a|>,<|b|>",
        out=Path("runs/with space"), steps=7, lr_scale=(r"blocks\.1.*=2.0", "ln_f.*=0.5"), prompt="-x --lr=3",
        layer_lr_decay=0.9, dropout=0.0, track=("tensorboard",), cache=Path("c"), patience=2, remat=True,
        text_field="the text", skip_bad_records=True,
    )  # fmt: skip
    for settings in (Settings(), odd):
        flags = as_flags(json.loads(json.dumps(to_json(settings))))
        assert read_command(flags) == settings
        assert Settings(**stored_settings(json.loads(json.dumps(to_json(settings))))) == settings
    assert as_flags(to_json(Settings())) == []
    assert {field.name for field in fields(Settings)} == to_json(Settings()).keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"run\.json can't be read as the run.json of a run \(not JSON: "),
        ("[]", r"run\.json can't be read"),
        ("[" * 100_000, r"run\.json can't be read as the run.json of a run \(not JSON.*nested too deep"),
        ('{"settings": 3}', r"run\.json can't be read"),
        ('{"settings": {"exec": 1}}', "holds unknown settings: exec"),
        ('{"settings": {"steps": "ten"}}', "steps is of the wrong type: 'ten'"),
        ('{"settings": {"steps": true}}', "steps is of the wrong type: True"),
        ('{"settings": {"steps": 0}}', "--steps: must be from 1 to 1,000,000,000, not 0"),
        ('{"settings": {"lr_scale": ["ln_f.*=1.0", 3]}}', "lr_scale is of the wrong type: 3"),
        ('{"settings": {"dtype": "float8"}}', "--dtype: must be float32 or bfloat16, not 'float8'"),
        (None, r"run\.json can't be read as the run.json of a run \(No such file"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    for named in (tmp_path / "run.json", tmp_path):  # the file, or its folder
        with pytest.raises(jaxgpt.InputError, match=message):
            read_command([f"--config={named}"])


def test_what_addresses_machines_or_permits_destruction_is_never_repeated(tmp_path):
    """Values of run.json are values, and no flags."""
    dangerous = {"force": True, "resume_anyway": True, "resume": True, "coordinator": "evil:1", "processes": 2}
    stored = {"lr_scale": ["ln_f.*=1.0", "--force"], "seed": 3, **dangerous}
    (tmp_path / "run.json").write_text(json.dumps({"settings": stored}))
    settings = read_command([f"--config={tmp_path}", "--out=elsewhere"])
    assert settings == Settings(lr_scale=("ln_f.*=1.0", "--force"), seed=3, out=Path("elsewhere"), config=tmp_path)


def test_resume_anyway_goes_on_with_another_run_and_says_so(train, texts, tmp_path):
    out, _ = train()
    other = tmp_path / "other.txt"
    other.write_text(texts.read_text() + "More of it. " * 200)
    flags = ("--steps=6", f"--data={other}", "--lr=1e-3")
    _, refused = train(*flags, "--resume", check=False)
    assert "--steps was 4 and is 6" in refused
    assert "--data was " in refused
    assert "--resume-anyway" in refused
    _, text = train(*flags, "--resume-anyway")
    assert re.search(r"resumed after step 4 with changes: .*--lr was 0.01 and is 0.001; the contents of --data", text)
    assert [line["step"] for line in metrics(out)] == list(range(7))
    (change,) = json.loads((out / "run.json").read_text())["changed"]
    assert change["step"] == 4
    assert len(change["what"]) == 4
    _, text = train(*flags, "--resume")  # it is that run now
    assert "is finished: all 6 steps are done" in text


# a loss that is no number


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_texts_and_the_last_good_checkpoint(train):
    flags = ("--steps=30", "--lr=5", "--warmup=0", "--clip=1e9", "--checkpoint-every=1", "--freeze=full")
    out, text = train(*flags, "--layer-lr-decay=1.0", "--lr-scale", ".*=1e9", check=False, report=True)
    found = re.search(r"train: (the loss|the gradient's norm) is (nan|inf) at step (\d+): training stops here", text)
    assert found, text
    step = int(found[3])
    assert "The texts of that step's batch: " in text
    assert "some.txt" in text
    assert f"the last good checkpoint is {out}/checkpoints/{complete_steps(out)[-1]}" in text
    assert complete_steps(out)[-1] < step
    for array in arrays(out, complete_steps(out)[-1]).values():
        assert np.isfinite(array).all()
    page = html.unescape((out / "report.html").read_text())
    assert f"Training broke off at step {step:,}: {found[1]} is {found[2]}." in page
    assert json.loads((out / "run.json").read_text())["failure"] == {"step": step, "what": f"{found[1]} is {found[2]}"}
    RunFolder(out).go_on()
    assert json.loads((out / "run.json").read_text())["failure"] == {}


@pytest.mark.parametrize("scale", ["1e30", "2e18"])
def test_parameters_after_an_update_that_overflows_are_not_saved(train, scale):
    """The loss and the gradient of that step are from before it, and finite."""
    flags = ("--steps=3", "--lr=5", "--warmup=0", "--clip=1e9", "--checkpoint-every=1", "--freeze=full")
    out, text = train(*flags, "--layer-lr-decay=1.0", "--lr-scale", rf"ln_f\.scale={scale}", check=False)
    assert "train: the update's norm is inf at step 1: training stops here" in text
    assert "there is no checkpoint from before" in text
    assert complete_steps(out) == []


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("frist2", "--freeze: strategy 'frist2': unknown strategy: did you mean first2?"),
        ("first99", "--freeze: strategy 'first99': the model has only 2 blocks"),
        ("lora:rank=3", "--freeze: strategy 'lora:rank=3': lora: unknown option"),
        ("gradual:head@0,lsat1@50%", "'lsat1': unknown strategy: did you mean last1?"),
        ("lora:r=2+new-token", "unknown strategy: did you mean new-tokens?"),
    ],
)
def test_a_strategy_is_refused_before_the_model_is_read(small, tmp_path, monkeypatch, strategy, says):
    monkeypatch.setattr("jaxgpt.training.setup.load_model", lambda *_: pytest.fail("it was read"))
    refused = call("train", f"--model={small}", f"--freeze={strategy}", f"--out={tmp_path / 'r'}", check=False)
    assert refused.returncode == 2
    assert says in " ".join(refused.stderr.split())
    assert not (tmp_path / "r").exists()


def test_a_run_is_no_data(small, base, tmp_path):
    refused = call("train", f"--model={small}", f"--data={base}", f"--out={tmp_path / 'r'}", check=False)
    assert refused.returncode == 2
    assert "is a training run, not data: give it as --model" in " ".join(refused.stderr.split())
    assert not (tmp_path / "r").exists()
