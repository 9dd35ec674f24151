"""Coverage-guided fuzzing of the readers with atheris: python tests/fuzz/run.py TARGET [-max_total_time=600]

TARGET is one of `targets.seeds()`, such as safetensors_file, run_json or chat_template. `pip install atheris` first.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["jaxgpt"]):
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    import targets


def main() -> None:
    """Begins with a sound input, and mutates it until the time is over or something worse than an InputError comes."""
    name = sys.argv.pop(1)
    corpus = targets.HERE / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(targets.seeds()[name])
    atheris.Setup([*sys.argv, str(corpus)], getattr(targets, name))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
