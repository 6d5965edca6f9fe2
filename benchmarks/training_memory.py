"""Peak memory and time of training steps with blocks kept and with blocks computed again.

    python benchmarks/training_memory.py --layers 12 --width 768 --rows 16 --tokens 128

Every variant runs in a process of its own, because a process never gives its peak back. The peak is
that of the whole process (ru_maxrss): weights, moments and gradients stand in it as well. What a
process of this kind takes before its first step is told beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
STEPS = 3


def peak() -> float:
    """Gigabytes at the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(options: argparse.Namespace) -> None:
    """One variant: STEPS steps; prints a line of JSON."""
    import tensorflow as tf
    from training_kernels import batch, build

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    model, step = build(
        "fused", options.precision, options.layers, options.width,
        accumulate=options.accumulate, rematerialize=options.rematerialize,
    )  # fmt: skip
    before = peak()
    data = batch(options.rows, options.tokens)
    seconds = []
    for _ in range(STEPS):
        started = time.process_time()
        step(data)["loss"].numpy()
        seconds.append(time.process_time() - started)
    print(json.dumps({"before": before, "peak": peak(), "cpu_seconds": min(seconds[1:])}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--accumulate", type=int)
    parser.add_argument("--rematerialize", action="store_true")
    options = parser.parse_args()
    if options.accumulate is not None:
        measure(options)
        return
    print(f"{options.layers} x {options.width}, {options.rows} x {options.tokens} tokens")
    print("accumulate  rematerialize  GB before  GB peak  CPU seconds a step")
    for accumulate, again in ((1, False), (1, True), (4, False), (4, True)):
        command = [sys.executable, __file__, *sys.argv[1:], "--accumulate", str(accumulate)]
        command += ["--rematerialize"] if again else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-1000:])
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{accumulate:10}  {again!s:13}  {found['before']:9.2f}  {found['peak']:7.2f}  "
            f"{found['cpu_seconds']:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
