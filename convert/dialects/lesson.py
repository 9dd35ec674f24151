"""The lesson's own GPT: `nn.Linear` kernels, (out, in), and the names that ours are taken from."""

from jaxgpt.convert.dialect import Dialect, Row

LESSON = Dialect(
    name="lesson",
    title="the GPT of jaxgpt's lesson",
    rows=(
        Row("tok_emb.embedding", "tok_emb.weight", "V D -> V D"),
        Row("pos_emb.embedding", "pos_emb.weight", "T D -> T D"),
        Row("blocks.{i}.ln_1.scale", "blocks.{i}.ln_1.weight", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "blocks.{i}.ln_1.bias", "D -> D"),
        Row("blocks.{i}.attn.c_attn.kernel", "blocks.{i}.attn.c_attn.weight", "(C N H) D -> D C N H"),
        Row("blocks.{i}.attn.c_attn.bias", "blocks.{i}.attn.c_attn.bias", "(C N H) -> C N H"),
        Row("blocks.{i}.attn.c_proj.kernel", "blocks.{i}.attn.c_proj.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", "blocks.{i}.attn.c_proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "blocks.{i}.ln_2.weight", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "blocks.{i}.ln_2.bias", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "blocks.{i}.mlp.fc1.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "blocks.{i}.mlp.fc1.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "blocks.{i}.mlp.fc2.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "blocks.{i}.mlp.fc2.bias", "D -> D"),
        Row("ln_f.scale", "ln_f.weight", "D -> D"),
        Row("ln_f.bias", "ln_f.bias", "D -> D"),
        Row("lm_head.kernel", "lm_head.weight", "V D -> D V"),
    ),
    buffers=(("blocks.{i}.attn.bias", "1 1 T T"), ("blocks.{i}.attn.mask", "1 1 T T"), ("blocks.{i}.attn.mask", "T T")),
    fixed={"layer_norm_epsilon": 1e-5},
    writes_tied_head=True,
)
