"""Gradual unfreezing in a training loop of your own: three phases, one compiled step each, moments carried over.

python examples/own_loop.py
"""

import jax
import optax

import jaxgpt
from jaxgpt import freeze

STEPS = 30

model, tokenizer = jaxgpt.from_pretrained("tiny"), jaxgpt.load_tokenizer("tiny")
tokens = jax.numpy.asarray([tokenizer("In the beginning God created the heaven and the earth. " * 6)["input_ids"]])
plan = freeze.parse("gradual", model.config, STEPS)  # or "gradual:head@0,last3@40%,full@80%"
adamw = optax.adamw(optax.linear_schedule(0.0, 1e-3, 5))  # every phase's group counts, and warms up, for itself
print(plan.describe(jaxgpt.named_params(model), model.config))


def loss_of(trainable, frozen):
    """Only its first argument is differentiated."""
    return jaxgpt.next_token_loss(jaxgpt.with_params(model, trainable | frozen), tokens).mean()


params, opt_state = jaxgpt.named_params(model), None
for phase, end in zip(plan.phases, [*(phase.start for phase in plan.phases[1:]), STEPS], strict=True):
    trainable, frozen = plan.partition(params, phase.start)
    tx = freeze.optimizer(plan, trainable, adamw, phase.start)
    opt_state = freeze.thaw(tx, trainable, opt_state)

    @jax.jit
    def step(trainable, frozen, opt_state, tx=tx):
        """One update of what trains in this phase."""
        loss, grads = jax.value_and_grad(loss_of)(trainable, frozen)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state, loss

    for i in range(phase.start, end):
        trainable, opt_state, loss = step(trainable, frozen, opt_state)
        print(f"step {i + 1}: {phase.name}, loss {loss:.3f}")
    params = trainable | frozen
