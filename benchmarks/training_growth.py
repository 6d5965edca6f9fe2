"""How the cost of a training step grows with the model, the length of rows, and the batch.

    python benchmarks/training_growth.py --threads 1
    python benchmarks/training_growth.py --only workers

Tokens per second of processor time and by the clock, for encoders with random weights, classifying
rows without padding, in bfloat16 where the machine has it; results/DATE-growth.{json,md,png}.
Every point runs for about as long as --seconds, in one process, one after the other.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
HERE = Path(__file__).parent

# (layers, width): BERT-tiny to BERT-base (Turc et al. 2019), and MiniLM's (6, 384).
MODELS = ((2, 128), (4, 256), (6, 384), (4, 512), (8, 512), (12, 768))
MINILM = (6, 384)
LENGTHS = (16, 32, 64, 128, 256, 512)
TOKENS = 2048  # of a step, where the length or the model changes
ROWS = (1, 4, 16, 64, 256)
ROW_LENGTH = 32  # where the number of rows changes
WORKERS = (1, 2)
WORKER_STEPS = 30


def points() -> dict[str, list[dict]]:
    """Series -> its points."""
    base = {"layers": MINILM[0], "width": MINILM[1], "length": 128, "rows": TOKENS // 128}
    return {
        "model": [{**base, "layers": layers, "width": width} for layers, width in MODELS],
        "length": [{**base, "length": length, "rows": TOKENS // length} for length in LENGTHS],
        "batch": [{**base, "length": ROW_LENGTH, "rows": rows} for rows in ROWS],
    }


def measured(point: dict, precision: str, seconds: float) -> dict:
    """A point with its parameters (without embeddings), tokens per second, and MFU by CPU time."""
    import keras
    import tensorflow as tf
    from training_kernels import batch, build

    from tfllm.training.monitoring.utilization import matrix_rate, work

    data = batch(point["rows"], point["length"])
    model, step = build("fused", precision, point["layers"], point["width"])
    for _ in range(2):
        step(data)
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while count < 2 or time.perf_counter() - wall < seconds:
        step(data)["loss"].numpy()
        count += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = point["rows"] * point["length"]
    flops = work(model).of(tokens, point["rows"])
    parameters = sum(
        int(tf.size(weight)) for weight in model.trainable_weights if "embedding" not in weight.path
    )
    keras.backend.clear_session()
    return {
        **point,
        "parameters": parameters,
        "tokens_per_second": count * tokens / wall,
        "tokens_per_cpu_second": count * tokens / cpu,
        "gigaflops_per_cpu_second": count * flops / cpu / 1e9,
        "matrix_gigaflops_per_second": matrix_rate(precision) / 1e9,
    }


def with_workers(count: int) -> dict | None:
    """The reviews' tiny recipe by `tfllm launch` with that many processes; None without it."""
    if not (HERE.parent / "tfllm" / "cli" / "launch.py").exists():
        return None
    recipe = HERE.parent / "models" / "bert" / "tiny.yaml"
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *("--set", f"train.steps={WORKER_STEPS}", "--set", "train.epochs=null"),
            *("--set", "train.batch_size=128", "--set", "train.log_every=10"),
            *("--set", "model.num_layers=4", "--set", "model.hidden_dim=256"),
            *("--set", "data.validation=null"),
        ]
        verb = ["launch", "--workers", str(count)] if count > 1 else ["train"]
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "tfllm", *verb, str(recipe), *settings]
        done = subprocess.run(
            [*command, "--output", str(output)], cwd=HERE.parent, capture_output=True, text=True
        )
        if done.returncode:
            print(done.stderr[-500:], file=sys.stderr)
            return None
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines[1:] if "tokens_per_second" in line]
    return {"workers": count, "tokens_per_second": sum(rates) / len(rates)}


def table(series: str, rows: list[dict]) -> list[str]:
    """Markdown of one series."""
    if series == "workers":
        lines = ["| workers | tokens/s by the clock |", "|---|---|"]
        return lines + [f"| {row['workers']} | {row['tokens_per_second']:,.0f} |" for row in rows]
    lines = [
        "| layers x width | parameters | rows x tokens | tokens per CPU second "
        "| tokens/s by the clock | GFLOP per CPU second |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['layers']} x {row['width']} | {row['parameters'] / 1e6:.1f} M "
            f"| {row['rows']} x {row['length']} | {row['tokens_per_cpu_second']:,.0f} "
            f"| {row['tokens_per_second']:,.0f} | {row['gigaflops_per_cpu_second']:.0f} |"
        )
    return lines


AXES = {
    "model": ("parameters", "parameters without embeddings"),
    "length": ("length", "tokens of a row, 2,048 a step"),
    "batch": ("rows", f"rows of {ROW_LENGTH} tokens a step"),
    "workers": ("workers", "worker processes on one machine"),
}


def plot(measured_series: dict[str, list[dict]], path: Path) -> None:
    """A panel for every series."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(measured_series)
    figure = Figure(figsize=(3.6 * count, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, (series, rows) in zip(axes, measured_series.items(), strict=True):
        key, label = AXES[series]
        rate = "tokens_per_second" if series == "workers" else "tokens_per_cpu_second"
        rows = sorted(rows, key=lambda row: row[key])
        axis.plot([row[key] for row in rows], [row[rate] for row in rows], marker="o")
        if series != "workers":
            axis.set_xscale("log")
        if series == "model":
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_xticks([row[key] for row in rows])
        axis.minorticks_off()
        names = [f"{row[key] / 1e6:.3g} M" if series == "model" else str(row[key]) for row in rows]
        axis.set_xticklabels(names, rotation=45 if series == "model" else 0)
        axis.set_xlabel(label)
        axis.set_ylabel("tokens/s" if series == "workers" else "tokens per CPU second")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", action="append", choices=[*points(), "workers"])
    options = parser.parse_args()
    import tensorflow as tf
    from run import processor

    from tfllm.training.acceleration import precision

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    kind = precision.choose("auto")
    chosen = options.only or [*points(), "workers"]
    found: dict[str, list[dict]] = {}
    for series in chosen:
        rows = []
        for point in points().get(series, WORKERS):
            row = (
                with_workers(point)
                if series == "workers"
                else measured(point, kind, options.seconds)
            )
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows += [row] if row else []
        if rows:
            found[series] = rows
    date = datetime.date.today().isoformat()
    path = HERE / "results" / f"{date}-growth"
    text = [f"# {date}: how the cost of training grows", ""]
    text += [f"Machine: {processor()}; {options.threads} threads; {kind}.", ""]
    text += ["Command: `python benchmarks/training_growth.py " + " ".join(sys.argv[1:]) + "`", ""]
    text += [f"![tokens per second]({path.name}.png)", ""]
    for series, rows in found.items():
        text += [f"## {series}", "", *table(series, rows), ""]
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(found, indent=1))
    path.with_suffix(".md").write_text("\n".join(text))
    plot(found, path.with_suffix(".png"))
    print("\n".join(text))


if __name__ == "__main__":
    main()
