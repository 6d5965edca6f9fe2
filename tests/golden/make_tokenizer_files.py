"""Writes tokenizer_files.json: the ids that transformers gives for each directory of file_cases.

    python -m tests.golden.make_tokenizer_files

Made with transformers 5.23. A case that transformers itself refuses has null.
"""

import json
import tempfile
import warnings
from pathlib import Path

from tests.tokenizers.file_cases import PAIR, TEXTS, cases, write

OUTPUT = Path(__file__).with_name("tokenizer_files.json")


def answers(folder):
    """Each text's row and the pair's, ids with spaces between; the number of tokens."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    rows.append(tokenizer(*PAIR)["input_ids"])
    return [" ".join(map(str, row)) for row in rows], len(tokenizer)


def main():
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows: dict[str, int] = {}
    found = {}
    for name, files in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                texts, size = answers(write(folder, files))
            except Exception:  # whatever it raises for files that it refuses
                found[name] = None
                continue
        found[name] = [size, *(rows.setdefault(text, len(rows)) for text in texts)]
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    body = ",\n".join(lines)
    OUTPUT.write_text(f'{{"rows": {json.dumps(list(rows))},\n"cases": {{\n{body}\n}}}}\n')
    print(f"{OUTPUT.name}: {len(found)} cases, {len(rows)} rows")


if __name__ == "__main__":
    main()
