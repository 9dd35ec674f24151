"""The held-out part: the loss on it, and a text that the model writes."""

import jax

import jaxgpt
from jaxgpt.convert.command_line.console import busy
from jaxgpt.params import with_params
from jaxgpt.tokenizer import begin_ids
from jaxgpt.training.data.device_batches import device_eval_batches
from jaxgpt.training.distributed import any_process
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
    """Return a text that begins with the prompt."""
    model, prompt = with_params(inputs.spec.model, state.params), inputs.prompt
    room = min(SAMPLE_TOKENS, model.config.n_positions - len(prompt))
    with busy("writing a sample"):
        (out,) = jaxgpt.generate(
            model, [prompt], max_new_tokens=room, temperature=0.8, top_k=40, seed=inputs.settings.seed,
            eos_id=model.config.end_ids if inputs.is_chat else None,
        )  # fmt: skip
    begin = begin_ids(inputs.tokenizer)
    return inputs.tokenizer.decode(out[len(begin) :] if begin and [*out[:1]] == begin else out)
