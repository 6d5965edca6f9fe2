"""`make bench`: every runner in turn, round after round, on one machine; a table of medians.

    python benchmarks/run.py --rounds 3
    python benchmarks/run.py --run runs/sst2 --only training --rounds 1

The model is a run of this project (MiniLM; one epoch on the reviews where --run is not given). It
is exported and converted first, so that every runner has the same weights in its own form. Seconds
differ between machines and hours: read the ratios of one table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tfllm import machine

HERE = Path(__file__).parent
MEASURES = (
    "examples_per_second",
    "texts_per_second",
    "megabytes_per_second",
    "requests_per_second",
    "tokens_per_second",
)
LIMIT_SECONDS = 300  # for one runner

# The int8 files of the generation cases, by batch size: steps with a cache, and whole texts.
INT8 = {1: "gpt2-int8", 8: "gpt2-int8-loop"}
INT8_SETTINGS = {
    "gpt2-int8": ["tflite-int8", "--set", "max_length=256"],
    "gpt2-int8-loop": [
        *("tflite-loop", "--set", "quantization=int8", "--set", "batch_sizes=[8]"),
        *("--set", "prompt_length=32", "--set", "max_length=96"),
    ],
}
BART_INT8 = "bart-int8-loop"
BART_SETTINGS = [
    *("tflite-loop", "--set", "quantization=int8", "--set", "batch_sizes=[1, 32]"),
    *("--set", "prompt_length=32"),
]


def cases(work: Path) -> dict[str, list[list[str]]]:
    """Table of what is measured: name -> command lines that take turns."""
    hub = ["--model", str(work / "huggingface")]

    def inference(batch_size: int) -> list[list[str]]:
        batch = [*hub, "--batch-size", str(batch_size)]
        ours = ["inference_tfllm.py", *batch, "--artifact"]
        return [
            [*ours, str(work / "savedmodel")],
            [*ours, str(work / "savedmodel-bfloat16")],
            [*ours, str(work / "tflite-float32")],
            [*ours, str(work / "tflite-int8")],
            ["inference_transformers.py", *batch, "--precision", "float32"],
            ["inference_transformers.py", *batch, "--precision", "bfloat16"],
            ["inference_kerashub.py", *batch, "--precision", "float32"],
        ]

    def generation(batch_size: int) -> list[list[str]]:
        batch = ["--model", str(work / "gpt2"), "--batch-size", str(batch_size)]
        return [
            ["generation_tfllm.py", *batch],
            ["generation_transformers.py", *batch],
            ["generation_kerashub.py", *batch],
            ["generation_ctranslate2.py", *batch],
            ["generation_tfllm.py", *batch, "--precision", "bfloat16"],
            ["generation_transformers.py", *batch, "--precision", "bfloat16"],
            ["generation_lite.py", *batch, "--artifact", str(work / INT8[batch_size])],
            ["generation_ctranslate2.py", *batch, "--precision", "int8"],
        ]

    def seq2seq(batch_size: int, beams: int) -> list[list[str]]:
        batch = ["--model", str(work / "bart"), "--batch-size", str(batch_size)]
        batch += ["--beams", str(beams)]
        commands = [
            ["seq2seq_tfllm.py", *batch],
            ["seq2seq_transformers.py", *batch],
            ["seq2seq_kerashub.py", *batch],
            ["seq2seq_ctranslate2.py", *batch],
            ["seq2seq_tfllm.py", *batch, "--precision", "bfloat16"],
            ["seq2seq_transformers.py", *batch, "--precision", "bfloat16"],
            ["seq2seq_ctranslate2.py", *batch, "--precision", "int8"],
        ]
        if beams == 1:
            commands.append(["seq2seq_lite.py", *batch, "--artifact", str(work / BART_INT8)])
        return commands

    return {
        "training": [
            ["training_tfllm.py", *hub],
            ["training_transformers.py", *hub],
            ["training_kerashub.py", *hub],
        ],
        "BERT-base training, 16 x 128": [
            ["training_tfllm.py", "--base"],
            ["training_tfllm.py", "--base", "--kernels", "fused"],
            ["training_transformers.py", "--base"],
            ["training_kerashub.py", "--base"],
        ],
        "language training": [
            ["language_tfllm.py"],
            ["language_torch.py"],
            ["language_torch.py", "--fused"],
        ],
        "inference, batch 1": inference(1),
        "inference, batch 32": inference(32),
        "tokenization": [["tokenization.py", *hub]],
        "generation, batch 1": generation(1),
        "generation, batch 8": generation(8),
        **{
            f"seq2seq, batch {batch_size}, {beams} beams": seq2seq(batch_size, beams)
            for batch_size in (1, 32)
            for beams in (1, 4)
        },
        "server": [["server.py", "--artifact", str(work / "savedmodel")]],
    }


def prepare_model(work: Path, name: str, script: str, files: dict[str, list[str]]) -> None:
    """A model with random weights, and its exported files (name -> settings), made once."""
    if not (work / name).exists():
        command = [sys.executable, str(HERE / script), "--model", str(work / name)]
        subprocess.run(command, check=True)
    for file, settings in files.items():
        if not (work / file).exists():
            command = [sys.executable, "-m", "tfllm", "export", str(work / name)]
            command += ["--to", *settings, "--output", str(work / file)]
            subprocess.run(command, check=True)


def prepare(run: str | None, work: Path) -> None:
    """The run's checkpoint as a Hugging Face directory and as artifacts, made once."""
    command = [sys.executable, "-m", "tfllm"]
    if run is None:
        run = str(work / "run")
        if not (work / "run" / "summary.json").exists():
            settings = ["--set", "task.pooling=first", "--set", "train.epochs=1"]
            recipe = str(HERE.parent / "models" / "bert" / "quickstart.yaml")
            subprocess.run([*command, "train", recipe, *settings, "--output", run], check=True)
    if not (work / "huggingface").exists():
        output = ["--output", str(work / "huggingface")]
        subprocess.run([*command, "convert", run, "--to", "huggingface", *output], check=True)
    for profile in ("savedmodel", "savedmodel-bfloat16", "tflite-float32", "tflite-int8"):
        if not (work / profile).exists():
            output = ["--output", str(work / profile)]
            subprocess.run([*command, "export", run, "--to", profile, *output], check=True)


def measure(arguments: list[str]) -> list[dict]:
    """Runs one runner; its result lines, or the reason why there is none."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(
            command, cwd=HERE, env=environment, capture_output=True, text=True,
            timeout=LIMIT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"  {arguments[0]}: not within {LIMIT_SECONDS} s", file=sys.stderr)
        return []
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"  {arguments[0]} failed: {reason}", file=sys.stderr)
    return lines


def collect(commands: list[list[str]], rounds: int) -> dict[str, list[dict]]:
    """runner -> its results of all rounds; the runners take turns within a round."""
    results: dict[str, list[dict]] = {}
    for number in range(rounds):
        for command in commands:
            print(f"  round {number + 1}: {' '.join(command[:1])}", file=sys.stderr, flush=True)
            for result in measure(command):
                name = f"{result['runner']} {result.get('precision', '')}".strip()
                results.setdefault(name, []).append(result)
    return results


def table(results: dict[str, list[dict]]) -> list[str]:
    """Markdown: median, spread, ratio to the first row."""
    rows, first = [], None
    for name, repeated in results.items():
        measure_name = next(key for key in MEASURES if key in repeated[0])
        values = [result[measure_name] for result in repeated]
        middle = statistics.median(values)
        first = middle if first is None else first
        tail = repeated[0]
        latency = (
            f"{statistics.median(r['p50_milliseconds'] for r in repeated):.1f} / "
            f"{statistics.median(r['p99_milliseconds'] for r in repeated):.1f}"
            if "p50_milliseconds" in tail
            else ""
        )
        rows.append(
            f"| {name} | {middle:.4g} | {min(values):.4g} to {max(values):.4g} | {latency} "
            f"| {first / middle:.2f} |"
        )
    unit = measure_name.replace("_", " ")
    head = f"| runner | {unit}, median | range | p50 / p99 ms | first row is this many times it |"
    return [head, "|---|---|---|---|---|", *rows]


def processor() -> str:
    """The processor's name and the cores in use."""
    return f"{machine.processor()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a fine-tuned run directory; unset: one is made")
    parser.add_argument("--work", default="runs/bench", help="where converted models are kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a case's name, or its beginning")
    options = parser.parse_args()
    if options.run and not Path(options.run).exists():
        sys.exit(f"There is no run '{options.run}'. Train one, or leave --run out.")
    work = Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    chosen = {
        name: commands
        for name, commands in cases(work).items()
        if options.only is None or any(name.startswith(only) for only in options.only)
    }
    if any(name.startswith("generation") for name in chosen):
        prepare_model(work, "gpt2", "generation.py", INT8_SETTINGS)
    if any(name.startswith("seq2seq") for name in chosen):
        prepare_model(work, "bart", "seq2seq.py", {BART_INT8: BART_SETTINGS})
    own = ("generation", "seq2seq", "BERT-base", "language")
    if any(not name.startswith(own) for name in chosen):
        prepare(options.run, work)
    measured = {}
    for name, commands in chosen.items():
        print(name, file=sys.stderr)
        measured[name] = collect(commands, options.rounds)
    date = datetime.date.today().isoformat()
    stem = "-".join([date, *(only.split(",")[0].replace(" ", "-") for only in options.only or ())])
    versions = {
        key: value
        for results in measured.values()
        for repeated in results.values()
        for key, value in repeated[0].items()
        if key
        in ("torch", "transformers", "tensorflow", "keras", "keras_hub", "tokenizers", "python")
    }
    text = [f"# {date}", "", f"Machine: {processor()}. Rounds: {options.rounds}.", ""]
    text += ["Command: `python benchmarks/run.py " + " ".join(sys.argv[1:]) + "`", ""]
    text += ["Versions: " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items())), ""]
    for name, results in measured.items():
        text += [f"## {name}", "", *(table(results) if results else ["no result"]), ""]
    results_folder = HERE / "results"
    results_folder.mkdir(exist_ok=True)
    (results_folder / f"{stem}.json").write_text(json.dumps(measured, indent=1))
    (results_folder / f"{stem}.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
