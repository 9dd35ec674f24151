"""llm.c's `.bin`: its parameter tensors, one block's slice at a time, in nn.Linear's (out, in); tanh GELU, tied."""

from jaxgpt.convert.dialect import Dialect, Row

LLMC = Dialect(
    name="llmc",
    title="llm.c",
    rows=(
        Row("tok_emb.embedding", "wte", "V D -> V D"),
        Row("pos_emb.embedding", "wpe", "T D -> T D"),
        Row("blocks.{i}.ln_1.scale", "ln1w.{i}", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "ln1b.{i}", "D -> D"),
        Row("blocks.{i}.attn.c_attn.kernel", "qkvw.{i}", "(C N H) D -> D C N H"),
        Row("blocks.{i}.attn.c_attn.bias", "qkvb.{i}", "(C N H) -> C N H"),
        Row("blocks.{i}.attn.c_proj.kernel", "attprojw.{i}", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", "attprojb.{i}", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "ln2w.{i}", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "ln2b.{i}", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "fcw.{i}", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "fcb.{i}", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "fcprojw.{i}", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "fcprojb.{i}", "D -> D"),
        Row("ln_f.scale", "lnfw", "D -> D"),
        Row("ln_f.bias", "lnfb", "D -> D"),
        Row("lm_head.kernel", "lm_head", "V D -> D V"),
    ),
    fixed={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
)
