"""Karpathy's lecture "Let's build GPT" (ng-video-lecture): a module for each head, an output head with a bias, ReLU."""

from jaxgpt.convert.dialect import Dialect, Row

QKV = ("query", "key", "value")

LECTURE = Dialect(
    name="lecture",
    title="Karpathy's lecture, gpt.py",
    rows=(
        Row("tok_emb.embedding", "token_embedding_table.weight", "V D -> V D"),
        Row("pos_emb.embedding", "position_embedding_table.weight", "T D -> T D"),
        Row("blocks.{i}.ln_1.scale", "blocks.{i}.ln1.weight", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "blocks.{i}.ln1.bias", "D -> D"),
        Row(
            "blocks.{i}.attn.c_attn.kernel",
            tuple(f"blocks.{{i}}.sa.heads.{{j}}.{part}.weight" for part in QKV),
            "(C N) H D -> D C N H",
        ),
        Row(
            "blocks.{i}.attn.c_attn.bias",
            tuple(f"blocks.{{i}}.sa.heads.{{j}}.{part}.bias" for part in QKV),
            "(C N) H -> C N H",
            may_lack=True,  # as in the lecture
        ),
        Row("blocks.{i}.attn.c_proj.kernel", "blocks.{i}.sa.proj.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", "blocks.{i}.sa.proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "blocks.{i}.ln2.weight", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "blocks.{i}.ln2.bias", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "blocks.{i}.ffwd.net.0.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "blocks.{i}.ffwd.net.0.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "blocks.{i}.ffwd.net.2.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "blocks.{i}.ffwd.net.2.bias", "D -> D"),
        Row("ln_f.scale", "ln_f.weight", "D -> D"),
        Row("ln_f.bias", "ln_f.bias", "D -> D"),
        Row("lm_head.kernel", "lm_head.weight", "V D -> D V"),
        Row("lm_head.bias", "lm_head.bias", "V -> V"),
    ),
    buffers=(("blocks.{i}.sa.heads.{j}.tril", "T T"),),
    fixed={"layer_norm_epsilon": 1e-5},
    assumed={"activation_function": "relu"},
    caution="attention scores are divided by sqrt(head size), as in gpt.py since 25 January 2023. If this checkpoint "
    "was trained by the code that the video shows, which multiplies them by n_embd**-0.5, multiply its query weights "
    "by sqrt(head size / n_embd) before it is read here",
)
