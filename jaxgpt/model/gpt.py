"""A GPT as a Flax NNX module, used as a plain pytree: GPT-2 (Radford et al. 2019), and what followed it.

Families differ in what the config says: `jaxgpt.convert.families` has a table of each. The reference of each is its
`modeling_*.py` in transformers. Parameters are named by their path: `blocks.3.attn.c_attn.kernel`.
Dimensions, one capital each: B batch, T position, D width, F hidden, V vocabulary, N heads, K heads of keys and values,
H head size, C the q/k/v triple, L layers, J rotary frequencies.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NoReturn, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float, Int

from jaxgpt.arguments import check_ids
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.int8 import Int8Kernel
from jaxgpt.mesh import constrain, is_for_one_cpu, platform
from jaxgpt.model.attention import attend, attention
from jaxgpt.model.bfloat16 import bfloat16_product, fits_bfloat16_product
from jaxgpt.model.cache import Cache
from jaxgpt.model.capture import NO_CONTEXT, Capture, Edit, ForwardContext, make_capture
from jaxgpt.model.dropout import Keys, dropout
from jaxgpt.model.layers import Embed, embed, make_linear, make_norm, new_rows, rms_norm
from jaxgpt.model.norm import normed
from jaxgpt.model.rotary import rotate, rotations
from jaxgpt.model.scan import fits_scan, scan_blocks
from jaxgpt.model.segments import positions

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Attention(nnx.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig, layer: int, *, rngs: nnx.Rngs, dtype, param_dtype):
        dims = config.dims
        linear, at = (
            partial(make_linear, config, rngs=rngs, dtype=dtype, param_dtype=param_dtype),
            f"blocks.{layer}.attn",
        )
        if config.split_qkv:
            self.q_proj = linear(f"{at}.q_proj", dims["D"], (dims["N"], dims["H"]))
            self.k_proj = linear(f"{at}.k_proj", dims["D"], (dims["K"], dims["H"]))
            self.v_proj = linear(f"{at}.v_proj", dims["D"], (dims["K"], dims["H"]))
        else:
            self.c_attn = linear(f"{at}.c_attn", dims["D"], (dims["C"], dims["N"], dims["H"]))
        self.split_qkv, self.qk_norm = config.split_qkv, config.qk_norm
        if config.qk_norm:
            self.q_norm, self.k_norm = (
                rms_norm(config, dims["H"], rngs=rngs, param_dtype=param_dtype) for _ in range(2)
            )
        self.c_proj = linear(f"{at}.c_proj", (dims["N"], dims["H"]), dims["D"], residual=True)
        self.scale = 1.0
        if config.scale_attn_weights:
            self.scale /= dims["H"] ** 0.5
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.window = config.window(layer)
        self.attn_pdrop, self.resid_pdrop = config.attn_pdrop, config.resid_pdrop

    def __call__(self, x: Float[Array, "B T D"], ctx: ForwardContext) -> Float[Array, "B T D"]:
        q, k, v = self.heads(x, ctx)
        if ctx.cache is None:
            capture = ctx.capture_hook(".attn.pattern")
            x = attention(
                q, k, v, scale=self.scale, segments=ctx.segments, window=self.window,
                dropout_rate=self.attn_pdrop, keys=ctx.keys, capture=capture,
            )  # fmt: skip
        else:
            ctx.cache.write(k, v)
            past = ctx.cache.keys[0].astype(q.dtype), ctx.cache.values[0].astype(q.dtype)
            visible = ctx.cache.visible(q.shape[1], self.window)
            x = attend(jnp.swapaxes(q, 1, 2), *past, visible, scale=self.scale)
        return dropout(self.c_proj(x, ctx.keys), self.resid_pdrop, ctx.keys)

    def heads(
        self, x: Float[Array, "B T D"], ctx: ForwardContext
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Compute queries, keys and values: normed, and rotated to their positions."""
        if self.split_qkv:
            q, k, v = self.q_proj(x, ctx.keys), self.k_proj(x, ctx.keys), self.v_proj(x, ctx.keys)
        else:
            q, k, v = (part[:, :, 0] for part in jnp.split(self.c_attn(x, ctx.keys), 3, axis=2))
        if self.qk_norm:
            q, k = self.q_norm(q).astype(q.dtype), self.k_norm(k).astype(k.dtype)
        if ctx.rotations is not None:
            q, k = rotate(q, ctx.rotations), rotate(k, ctx.rotations)
        return q, k, v


class MLP(nnx.Module):
    """Two linear layers around the activation, or around its product with a third one's outputs."""

    def __init__(self, config: GPTConfig, layer: int, *, rngs: nnx.Rngs, dtype, param_dtype):
        linear, at = (
            partial(make_linear, config, rngs=rngs, dtype=dtype, param_dtype=param_dtype),
            f"blocks.{layer}.mlp",
        )
        if config.gated_mlp:
            self.gate = linear(f"{at}.gate", config.n_embd, config.n_inner)
        self.gated = config.gated_mlp
        self.fc1 = linear(f"{at}.fc1", config.n_embd, config.n_inner)
        self.fc2 = linear(f"{at}.fc2", config.n_inner, config.n_embd, residual=True)
        self.activation_function, self.resid_pdrop = config.activation_function, config.resid_pdrop

    def __call__(self, x: Float[Array, "B T D"], ctx: ForwardContext) -> Float[Array, "B T D"]:
        activation = ACTIVATIONS[self.activation_function]

        def activate(up: Array, gate: Array | None = None) -> Array:
            return activation(up) if gate is None else activation(gate) * up

        if platform() == "gpu" or is_for_one_cpu():
            activate = jax.checkpoint(activate)  # whose gradient reads and keeps no more than what went in
        gate = (self.gate(x, ctx.keys),) if self.gated else ()
        hidden = activate(self.fc1(x, ctx.keys), *gate)
        return dropout(self.fc2(hidden, ctx.keys), self.resid_pdrop, ctx.keys)


class Block(nnx.Module):
    """Attention, and MLP after or beside it, each added to the residual stream, which keeps the parameters' dtype."""

    def __init__(self, config: GPTConfig, layer: int, *, rngs: nnx.Rngs, dtype, param_dtype):
        self.ln_1 = make_norm(config, rngs=rngs, param_dtype=param_dtype)
        self.attn = Attention(config, layer, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        self.ln_2 = make_norm(config, rngs=rngs, param_dtype=param_dtype)
        self.mlp = MLP(config, layer, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        self.parallel, self.dtype = config.parallel_residual, dtype

    def __call__(self, x: Float[Array, "B T D"], ctx: ForwardContext) -> Float[Array, "B T D"]:
        x, read = normed(self.ln_1, x, self.dtype)
        attended = ctx.capture(".attn", self.attn(ctx.capture(".ln_1", read), ctx)).astype(x.dtype)
        if not self.parallel:
            x = x + attended
        x, read = normed(self.ln_2, x, self.dtype)
        if self.parallel:
            x = x + attended
        return x + ctx.capture(".mlp", self.mlp(ctx.capture(".ln_2", read), ctx)).astype(x.dtype)


def run_block(
    block: Block, x: Float[Array, "B T D"], ctx: ForwardContext
) -> tuple[Float[Array, "B T D"], ForwardContext]:
    """Run a block, and return what its context has become too."""
    return block(x, ctx), ctx


run_alike = jax.jit(run_block)
"""The same, traced and lowered once for all blocks that are alike. XLA inlines it on a CPU and a GPU: the program stays
what it was. On a TPU it need not: GPT-2 XL's blocks, one after the other on 16 chips, then take 12.1 GiB of each
instead of 8.6, and compile no faster."""


@jax.jit
def run_whole(
    block: Block, x: Float[Array, "B T D"], ctx: ForwardContext
) -> tuple[Float[Array, "B T D"], ForwardContext]:
    """Run a block into which what it calls is inlined, also where it is itself kept apart."""
    # not None, which a gradient would forget: it is traced under what the call of the block says
    with set_xla_metadata(inlineable="true"):
        return run_block(block, x, ctx)


def run_apart(
    block: Block, x: Float[Array, "B T D"], ctx: ForwardContext
) -> tuple[Float[Array, "B T D"], ForwardContext]:
    """Run a block as `run_alike` does, which stays a function of XLA's program, as its gradient does.

    Then it is optimised once for all blocks that are alike, which takes half the time or less, and less memory:
    what a gradient computes again is not joined with what was computed before. For a single CPU only, whose backend
    calls functions; and without a cache, which would be copied to be handed over.
    """
    with set_xla_metadata(inlineable="false"):
        return run_whole(block, x, ctx)


ELSEWHERE = {
    "from_pretrained": "jaxgpt.from_pretrained(source)",
    "save_pretrained": "jaxgpt.save_pretrained(model, path)",
    "generate": "jaxgpt.generate(model, tokens, max_new_tokens=…), or jaxgpt.complete(model, tokenizer, text)",
    "resize_token_embeddings": "jaxgpt.resize_vocab(model, tokenizer)",
    "state_dict": "jaxgpt.named_params(model)",
    "load_state_dict": "jaxgpt.with_params(model, params)",
    "parameters": "jaxgpt.named_params(model).values()",
    "named_parameters": "jaxgpt.named_params(model).items()",
    "num_parameters": "jaxgpt.count_params(model)",
    "merge_and_unload": "jaxgpt.merge_lora(model)",
}
"""Functions that are methods of models in transformers, PEFT and PyTorch."""


class _NamesFunctions(type(nnx.Module)):  # type: ignore[misc]
    def __getattr__(cls, name: str) -> NoReturn:
        raise _elsewhere(cls, name)


def _elsewhere(of: type, name: str) -> AttributeError:
    instead = f": call {ELSEWHERE[name]}" if name in ELSEWHERE else ""
    return AttributeError(f"{of.__name__} has no attribute {name!r}{instead}", name=name, obj=of)


class GPT(nnx.Module, metaclass=_NamesFunctions):
    """A language model.

    Matrix products compute in `dtype`, and the parameters are of `param_dtype`; see `from_pretrained`.
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, param_dtype=jnp.float32):
        self.config, self.dtype = config, dtype
        embed = partial(Embed, features=config.n_embd, rngs=rngs, param_dtype=param_dtype)
        self.tok_emb = embed(config.vocab_size, embedding_init=nnx.initializers.normal(0.02))
        if config.positions == "learned":
            self.pos_emb = embed(config.dims["P"], embedding_init=nnx.initializers.normal(0.02))
        self.blocks = nnx.List(
            [Block(config, i, rngs=rngs, dtype=dtype, param_dtype=param_dtype) for i in range(config.n_layer)]
        )
        self.ln_f = make_norm(config, rngs=rngs, param_dtype=param_dtype)
        if not config.tie_word_embeddings:
            linear = partial(make_linear, config, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
            self.lm_head = linear("lm_head", config.n_embd, config.vocab_size, use_bias=config.head_bias)
        if config.n_new_tokens:
            self.tok_emb.new = nnx.Param(jnp.zeros((config.n_new_tokens, config.n_embd)))
            if not config.tie_word_embeddings:
                self.lm_head.new = nnx.Param(jnp.zeros((config.n_embd, config.n_new_tokens)))

    if not TYPE_CHECKING:  # which would believe in any attribute

        def __getattr__(self, name: str) -> NoReturn:
            raise _elsewhere(type(self), name)

    @overload
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        segments: Int[Array, "B T"] | None = None,
        dropout_key: Array | None = None,
        capture: None = None,
        edit: Mapping[str, Edit] | None = None,
        remat: bool = False,
    ) -> Float[Array, "B T V"]: ...
    @overload
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        segments=None,
        dropout_key=None,
        capture: str,
        edit=None,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T V"], dict[str, Float[Array, "..."]]]: ...
    def __call__(self, tokens, *, segments=None, dropout_key=None, capture=None, edit=None, remat=False):
        """Compute the logits, in float32, of the token that follows each position.

        Ids must be from 0 to V - 1. Inside a function that `jax.jit` traces their values are unknown, so that they are
        not checked there, and the logits of an id that does not exist are NaN.

        Args:
            segments: for rows that hold several texts, the number of each token's text; 0 is padding. Texts don't see
                each other, and positions begin anew in each.
            dropout_key: turns on the config's dropout, for training.
            capture: a regular expression; what has a name that it matches as a whole is returned beside the logits, by
                name: `blocks\\.3` is the residual stream after a block, `blocks\\.3\\.attn\\.pattern` its attention.
                All names are in `jaxgpt.model.capture`.
            edit: functions by the same names, whole: each is given the value of its name, and the forward pass goes on
                with the array of the same shape that it returns. `capture` returns values as they were edited.
            remat: keep only the residual stream between blocks for the backward pass, which computes the rest again:
                the memory of one block for a third more work.

        Raises:
            InputError: tokens of another shape, more than the context, or with an id that the model does not have; or
                `capture` matches nothing, or `edit` names nothing or changes a shape.
        """
        captured = None if capture is None and not edit else make_capture(capture, edit)
        x = self.residual_stream(tokens, segments=segments, dropout_key=dropout_key, captures=captured, remat=remat)
        keys = None if dropout_key is None else Keys(jax.random.fold_in(dropout_key, 0))
        logits = self.logits(x, ForwardContext(keys=keys, captures=captured))
        found = None if captured is None else captured.result()
        return logits if capture is None else (logits, found)

    def residual_stream(
        self,
        tokens: Int[Array, "B T"],
        *,
        segments: Int[Array, "B T"] | None = None,
        dropout_key: Array | None = None,
        captures: Capture | None = None,
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """Compute the residual stream after the last block, for `logits`. Arguments and errors are those of a call."""
        if getattr(tokens, "ndim", None) != 2:
            raise InputError(f"tokens must be an array of shape (B, T), not {getattr(tokens, 'shape', tokens)}")
        if not 0 < (T := tokens.shape[1]) <= self.config.n_positions:
            raise InputError(f"{T} tokens do not fit into the model's context of {self.config.n_positions}")
        check_ids(tokens, self.config.vocab_size, "token ids")
        keys = None if dropout_key is None else Keys(dropout_key)
        at = jnp.arange(T)[None] if segments is None else positions(segments)
        return self.hidden(tokens, at, ForwardContext(keys=keys, captures=captures, segments=segments, remat=remat))

    def step(self, tokens: Int[Array, "B T"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Compute the logits of the token that follows the last of these, and the new cache.

        The tokens follow those in the cache.
        """
        T, cache = tokens.shape[1], cache.copy()
        x = self.hidden(tokens, cache.positions(T), ForwardContext(cache=cache))
        return self.logits(x[:, -1:])[:, 0], cache.advanced(T)

    def hidden(self, tokens: Int[Array, "B T"], at: Int[Array, "#B T"], ctx: ForwardContext) -> Float[Array, "B T D"]:
        """Compute the residual stream after the last block, of tokens at these positions; a cache is written to."""
        x = embed(self.tok_emb, tokens)
        if self.config.n_new_tokens:
            first = self.config.n_tokens - self.config.n_new_tokens
            x = constrain(new_rows(x, tokens, self.tok_emb.new[...].astype(x.dtype), first))
        x = ctx.capture("tok_emb", x)
        if self.config.positions == "learned":
            x = x + ctx.capture("pos_emb", embed(self.pos_emb, at + self.config.position_offset))
        else:
            ctx = replace(ctx, rotations=rotations(self.config, at))
        x = constrain(ctx.capture("embeddings", dropout(x, self.config.embd_pdrop, ctx.keys)))
        if fits_scan(x, ctx):
            return scan_blocks(run_block, self.blocks, x, ctx)
        for layer, block in enumerate(self.blocks):
            own = ctx.of_block(layer)
            run = run_block
            if own.captures is None and platform() != "tpu":
                run = run_apart if is_for_one_cpu() and ctx.cache is None else run_alike
            x, after = (jax.checkpoint(run) if ctx.remat else run)(block, x, own)
            ctx = ctx.after_block(layer, after)
            x = ctx.capture(f"blocks.{layer}", constrain(x))
        return x

    def logits(
        self, x: Float[Array, "B T D"], ctx: ForwardContext = NO_CONTEXT, *, dtype: Any = jnp.float32, multiple: int = 1
    ) -> Float[Array, "B T V"]:
        """Compute the logits of a residual stream: of the last block's, or of an earlier one as a lens.

        Args:
            dtype: that of the logits.
            multiple: columns without meaning follow until their number is a multiple of this, which some hardware
                needs to be fast; not if the head has an adapter, is in 8 bits, or computes in bfloat16 on a CPU.
        """
        x = ctx.capture("ln_f", self.ln_f(x))
        rows, is_tied = x.astype(self.dtype).reshape(-1, self.config.n_embd), self.config.tie_word_embeddings
        head = self.tok_emb.embedding[...].T if is_tied else self.lm_head.kernel.get_value()
        n_more = 0
        if not is_tied and (self.lm_head.lora or isinstance(head, Int8Kernel)):
            logits = self.lm_head.product(rows, dtype)
        elif fits_bfloat16_product(self.dtype):
            kernel, axis = (self.tok_emb.embedding[...], 1) if is_tied else (head, 0)
            logits = bfloat16_product(rows, kernel, axis).astype(dtype)
        else:
            n_more = -head.shape[1] % multiple
            head = jnp.pad(head.astype(rows.dtype), ((0, 0), (0, n_more)))
            logits = jnp.matmul(rows, head, preferred_element_type=dtype)
        if not is_tied:
            if (bias := self.lm_head.bias) is not None:
                logits = logits + jnp.pad(bias[...].astype(dtype), (0, n_more))[None]
            logits = self.lm_head.adapted(rows, logits, ctx.keys)
        if n_new := self.config.n_new_tokens:
            new = self.tok_emb.new[...].T if is_tied else self.lm_head.new[...]
            columns = jnp.matmul(rows, new.astype(rows.dtype), preferred_element_type=dtype)
            logits = jax.lax.dynamic_update_slice(logits, columns, (0, self.config.n_tokens - n_new))
        return constrain(logits.reshape(*x.shape[:2], -1), None, "tensor")


def abstract(config: GPTConfig, *, dtype=None, param_dtype=None) -> GPT:
    """Make a model without memory: its parameters are shapes."""
    return nnx.merge(*_shapes(config, jnp.dtype(dtype or jnp.float32), jnp.dtype(param_dtype or jnp.float32)))


@lru_cache(maxsize=16)
def _shapes(config: GPTConfig, dtype: Any, param_dtype: Any) -> tuple[nnx.GraphDef, Any]:
    """Trace the construction of a model, once for each config."""
    rngs: Any = _SameKey()
    return nnx.split(nnx.eval_shape(lambda: GPT(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype)))


class _SameKey:
    """Stands for `nnx.Rngs` where nothing is drawn.

    Flax's own counts, and each count that is traced costs it a print of all that was traced before: of 48 blocks 11 s.
    """

    def params(self) -> Array:
        return jax.random.key(0)
