"""`tfllm prepare` on generated text of any size: time, speed, and the memory of all processes.

    python benchmarks/corpus.py generate --megabytes 2000 --output /tmp/text.txt
    nice -n 10 python benchmarks/corpus.py prepare /tmp/text.txt --output /tmp/corpus

The words have Zipf's frequencies, a tenth of the documents is in Chinese characters, and one in
fifty repeats an earlier one, half of these with a few words changed. The second command prints a
JSON line; memory is the sum of the resident sizes of the process and all its children, looked at
five times a second (pages that several share are counted in each).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = 200_000
IDEOGRAPHS = 4000
DOCUMENTS_AT_ONCE = 1000
REPEATED_SHARE, CHINESE_SHARE = 0.02, 0.1
INTERVAL_SECONDS = 0.2
RECIPE = """
tokenizer: {{kind: wordpiece, vocabulary_size: 16000}}
data:
  train: {path}
  format: paragraphs
  prepare: {{duplicates: near}}
"""


def generate(path: Path, megabytes: int, seed: int = 0) -> None:
    """Documents of a few hundred words between blank lines, one sentence a line or several."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlcumwfgypbvkjxqz"))
    chances = 1 / (np.arange(26) + 3)
    chances /= chances.sum()
    sizes = generator.integers(2, 11, WORDS)
    words = np.array(["".join(generator.choice(letters, n, p=chances)) for n in sizes])
    han = np.array([chr(0x4E00 + n) for n in generator.permutation(IDEOGRAPHS)])
    kept: list[str] = []
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            for _ in range(DOCUMENTS_AT_ONCE):
                text = _document(generator, words, han, kept)
                file.write(text + "\n\n")
                written += len(text.encode())
            kept = kept[-5000:]


def _document(
    generator: np.random.Generator, words: np.ndarray, han: np.ndarray, kept: list[str]
) -> str:
    if kept and generator.random() < REPEATED_SHARE:
        text = kept[generator.integers(len(kept))]
        return text if generator.random() < 0.5 else text.replace(" the", " a", 2) + " Again."
    chinese = generator.random() < CHINESE_SHARE
    sentences = []
    for length in generator.integers(5, 40, generator.integers(4, 30)):
        # Zipf: the n-th word comes with a frequency of 1/n.
        pool = han if chinese else words
        ranks = np.exp(generator.random(length) * np.log(len(pool))).astype(int) - 1
        chosen = pool[ranks]
        sentences.append("".join(chosen) + "。" if chinese else " ".join(chosen).capitalize() + ".")
    text = ("" if chinese else " ").join(sentences)
    if generator.random() < 0.1:
        kept.append(text)
    return text


def prepare(path: Path, output: Path, workers: int) -> None:
    """Runs `tfllm prepare` and prints what it took."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(RECIPE.format(path=path))
        command = [sys.executable, "-m", "tfllm", "prepare", str(recipe)]
        command += ["--output", str(output), "--workers", str(workers)]
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            resident = sum(map(_resident, _family(process.pid)))
            peak = max(peak, resident)
            time.sleep(INTERVAL_SECONDS)
        seconds = time.monotonic() - begun
    manifest = json.loads((output / "manifest.json").read_text())
    size = path.stat().st_size
    print(json.dumps({
        "megabytes": round(size / 1e6), "seconds": round(seconds),
        "megabytes_per_second": round(size / 1e6 / seconds, 2), "peak_resident_megabytes":
        round(peak / 1e6), "workers": workers, "exit_status": process.returncode,
        **{key: manifest[key] for key in ("documents", "sentences", "tokens", "read")},
    }))  # fmt: skip


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                children = Path(f"/proc/{parent}/task/{task}/children").read_text()
                found += map(int, children.split())
        except OSError:
            continue  # ended meanwhile
    return found


def _resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    text = verbs.add_parser("generate")
    text.add_argument("--megabytes", type=int, required=True)
    text.add_argument("--output", type=Path, required=True)
    corpus = verbs.add_parser("prepare")
    corpus.add_argument("path", type=Path)
    corpus.add_argument("--output", type=Path, required=True)
    corpus.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if given.verb == "generate":
        generate(given.output, given.megabytes)
    else:
        prepare(given.path, given.output, given.workers)


if __name__ == "__main__":
    main()
