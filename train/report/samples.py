"""The samples of a run: conversations as turns, code as code, and the prompt apart from what was written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

ROLES = r"system|user|assistant|tool|model|human|ai"
MARKS = re.compile(
    rf"""
      <\|im_start\|>\s*(?P<chatml>{ROLES})\s*\n                        # ChatML: Qwen, SmolLM
    | <\|start_header_id\|>\s*(?P<llama>{ROLES})\s*<\|end_header_id\|>   # Llama 3
    | <start_of_turn>\s*(?P<gemma>{ROLES})\s*\n                         # Gemma
    | <\|(?P<bare>{ROLES})\|>                                           # our own, Zephyr, Phi
    | (?P<inst>\[INST\])                                                # Llama 2, Mistral
    | (?P<answer>\[/INST\])
    """,
    re.X,
)
"""Where a turn begins, in the chat templates that are common."""

ENDS = re.compile(
    r"<\|(?:im_end|endoftext|end_of_text|begin_of_text|eot_id|end)\|>|<end_of_turn>|<bos>|<eos>|</?s>(?=\s|$|\[)"
)
"""Tokens that begin or end a text or a turn."""

CODE = re.compile(
    r"^\s*(?:def|class|import|from|return|if|elif|else|for|while|try|except|with|func|fn|let|const|var|public|private|"
    r"static|void|int|#include|package|use|struct|enum|module)\b.*[:;{(\w]$|[{};]\s*$|^\s*[\w.\[\]]+\s*[-+*/]?=\s*\S|"
    r"^\s*[\w.]+\(.*\)\s*[:;]?$|^\s*[)}\]]+[,;]?$|^\s*@\w+"
)
"""Lines as programs have them."""

OF_ANSWERS = ", an answer to a held-out question"
OF_TEXTS = ", in which the model continues the beginning of a held-out text"
"""The ends of the headings of samples.md from the second sample on; earlier versions wrote none."""

LONGEST = 20_000
"""Characters of a text that are shown, at most."""
MOST = 16
"""Samples of one time that are shown, at most."""


@dataclass(frozen=True)
class Turn:
    """A part of a conversation."""

    role: str
    """`user`, `assistant`, `system` or `tool`."""
    text: str


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote."""

    prompt: str
    """Its beginning, which was given; may be empty, where it isn't known."""
    text: str
    """The rest."""
    turns: tuple[Turn, ...] = ()
    """The conversation that it is, if it is one."""
    is_code: bool = False


@dataclass(frozen=True)
class Moment:
    """The samples of one time."""

    when: str
    samples: tuple[Sample, ...]


def moments(text: str, prompts: Sequence[str] = ()) -> list[Moment]:
    """Split samples.md into what was written before and after training; a time without a text has no samples."""
    before, *later = re.split(r"^## After (\d+) steps$", text, maxsplit=1, flags=re.M)
    found = [Moment("Before training", _samples(before.removeprefix("## Before training"), prompts))]
    if later:
        found.append(Moment(f"After {int(later[0][:15]):,} steps", _samples(later[1], prompts)))
    return found


def _samples(text: str, prompts: Sequence[str]) -> tuple[Sample, ...]:
    """Split a part of samples.md at its headings `### Sample 2`, `### Sample 3` …, as far as they count on."""
    parts, rest = [], text
    for number in range(2, MOST + 1):
        heading = re.search(rf"^### Sample {number}(?:{OF_ANSWERS}|{OF_TEXTS})?$", rest, re.M)
        if heading is None:
            break
        parts.append(rest[: heading.start()])
        rest = rest[heading.end() :]
    given = [*prompts, *[""] * MOST]
    return tuple(read_sample(part.strip("\n"), given[i]) for i, part in enumerate([*parts, rest]) if part.strip())


def read_sample(text: str, prompt: str = "") -> Sample:
    """Tell what a text is: a conversation, code, or prose."""
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    if turns := read_turns(shown):
        return Sample("", shown, turns)
    shown = ENDS.sub("", shown) if ENDS.sub("", shown).strip() else shown
    given = prompt if shown.startswith(prompt) else ""
    return Sample(given, shown[len(given) :], (), looks_like_code(shown))


def read_turns(text: str) -> tuple[Turn, ...]:
    """Return the turns of a conversation in one of the common forms; nothing if it is none."""
    marks = list(MARKS.finditer(text))
    if not marks or ENDS.sub("", text[: marks[0].start()]).strip():
        return ()
    turns = []
    for mark, end in zip(marks, [*(later.start() for later in marks[1:]), len(text)], strict=True):
        role = "user" if mark["inst"] else "assistant" if mark["answer"] else next(filter(None, mark.groups()))
        role = {"model": "assistant", "ai": "assistant", "human": "user"}.get(role, role)
        turns.append(Turn(role, ENDS.sub("", text[mark.end() : end]).strip()))
    return tuple(turns)


def looks_like_code(text: str) -> bool:
    """Tell whether half of the lines of a text are such as programs have."""
    lines = [line for line in text.splitlines()[:400] if line.strip()]
    return len(lines) >= 3 and sum(bool(CODE.search(line[:300])) for line in lines) >= 0.5 * len(lines)
