"""A model and a data set are looked for once per run: on a hub or in a bucket each look is a round trip."""

import datasets
import huggingface_hub
import pytest
from conftest import call

from jaxgpt.training.step.optimizer import lr_schedule, warmup_steps


def test_a_run_asks_the_hub_once_for_its_model_and_once_for_its_data(small, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, **_):
        asked.append(name)
        return str(small)

    def load_dataset(name, **_):
        asked.append(f"hf:{name}")
        texts = [f"In the beginning was the word number {i}, and the word was long. " * 3 for i in range(60)]
        return datasets.Dataset.from_dict({"text": texts})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    flags = ("--steps=1", "--batch-size=8", "--context=16", f"--out={tmp_path}/run", "--prompt=In")
    call("train", "--model=somebody/small", "--data=hf:somebody/texts", *flags)
    assert sorted(asked) == ["hf:somebody/texts", "somebody/small"]
    asked.clear()
    call("jaxgpt", "generate", "somebody/small", "--max-new-tokens=2")
    call("jaxgpt", "eval", "somebody/small", "--data=hf:somebody/texts")
    call("jaxgpt", "check", "somebody/small", check=False)
    assert sorted(asked) == ["hf:somebody/texts", *["somebody/small"] * 3]


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.1), (2, 0.5), (10, 0.0), (10, 1.0), (150, 0.1), (1000, 0.3)])
def test_the_first_step_of_a_warm_up_moves_and_its_last_is_at_the_peak(steps, warmup):
    rate, rise = lr_schedule(steps, warmup), warmup_steps(steps, warmup)
    rates = [float(rate(i)) for i in range(steps)]
    assert rates[0] == pytest.approx(1 / rise)
    assert rates[rise - 1] == pytest.approx(1)
    assert max(rates) <= 1 + 1e-6
    assert min(rates) >= min(0.1, 1 / rise) - 1e-6
    assert rates[rise:] == sorted(rates[rise:], reverse=True)
