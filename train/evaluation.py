"""The held-out part: the loss on it, and a text that the model writes."""

import jax

import jaxgpt
from jaxgpt.convert.command_line.console import busy
from jaxgpt.params import with_params
from jaxgpt.tokenizer import stop_ids
from jaxgpt.training.data.device_batches import device_eval_batches
from jaxgpt.training.distributed import any_process
from jaxgpt.training.report.samples import OF_ANSWERS, OF_TEXTS
from jaxgpt.training.setup import TrainingInputs
from jaxgpt.training.signals import Stop
from jaxgpt.training.step.step import TrainState, make_eval_step

SAMPLE_TOKENS = 120
"""Tokens of a text sample, at most."""


class Evaluator:
    """The compiled evaluation of a run."""

    def __init__(self, inputs: TrainingInputs):
        self._inputs, self._step = inputs, make_eval_step(inputs.spec.model, inputs.spec.objective)
        self.measured: dict[str, float] = {}
        """Other results of the last evaluation: of preferences how often the better answer had the higher reward, and
        of a moving average its loss."""

    def loss(self, state: TrainState, stop: Stop) -> float | None:
        """Return the mean loss of what counts in the held-out part, in nats; None if a signal came before."""
        spec, settings = self._inputs.spec, self._inputs.settings
        nats, tokens, right, averaged = 0.0, 0.0, 0.0, 0.0
        n = settings.batch_size // settings.accumulate  # what is known to fit
        with busy("evaluating"):
            for batch in device_eval_batches(self._inputs.data.held_out.rows, n, spec.mesh):
                if any_process(stop.requested.is_set()):
                    return None
                with jax.set_mesh(spec.mesh):
                    more = self._step(state.params, batch)
                    of_average = self._step(state.averaged_params, batch) if state.ema else ()
                nats, tokens = nats + float(more[0]), tokens + float(more[1])
                right += sum(map(float, more[2:]))
                averaged += sum(map(float, of_average[:1]))
        self.measured = {"eval_reward_accuracy": right / tokens} if spec.objective.preference else {}
        if state.ema:
            self.measured["ema_eval_loss"] = averaged / tokens
        return nats / tokens


def sample(inputs: TrainingInputs, state: TrainState) -> str:
    """Return a text for each prompt; from the second on under a heading."""
    model, prompts = with_params(inputs.spec.model, state.params), inputs.prompts
    room = min(SAMPLE_TOKENS, model.config.n_positions - max(map(len, prompts)))
    with busy("writing samples"):
        texts = jaxgpt.generate(
            model, prompts, max_new_tokens=room, temperature=0.8, top_k=40, seed=inputs.settings.seed,
            eos_id=stop_ids(model.config, inputs.tokenizer) if inputs.is_chat else None,
        )  # fmt: skip
    what = OF_ANSWERS if inputs.is_chat else OF_TEXTS
    first, *others = map(inputs.in_words, texts)
    return "\n\n".join([first, *(f"### Sample {i}{what}\n\n{text}" for i, text in enumerate(others, 2))])
