"""The families run on another Keras backend, to the same numbers: nothing in them is TensorFlow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent.parent / "golden" / "bert.npz"
TOLERANCE = 1e-4

RUN = """
import json
import sys
import keras
import numpy as np
from safetensors.numpy import load
from tfllm.checkpoints import weights
from tfllm.layers import heads
from tfllm.models import bert

assert keras.backend.backend() == sys.argv[2]
golden = dict(np.load(sys.argv[1]))
part = {name.removeprefix("classification/"): golden[name] for name in golden
        if name.startswith("classification/")}
config = bert.from_hf(json.loads(part["config"].tobytes()))
backbone = bert.backbone(config)
model = keras.Model(backbone.input, heads.classification_head(backbone.output, config, 3))
variables = weights.variables_of(model)
table = bert.WEIGHTS["bert"]
rows = weights.rows_of(variables, {**table.backbone, **table.heads["classification"]})
weights.to_variables(rows, variables, load(part["tensors"].tobytes()))
inputs = {name.removeprefix("inputs/"): part[name] for name in part if name.startswith("inputs/")}
outputs = keras.ops.convert_to_numpy(model(inputs))
print(float(np.abs(outputs - part["logits"]).max()))
"""


DECODERS = """
import json
import sys
import keras
import numpy as np
from safetensors.numpy import load
from tfllm.checkpoints import weights
from tfllm.layers import heads
from tfllm.models import FAMILIES, get_weight_map

assert keras.backend.backend() == sys.argv[2]
golden = dict(np.load(sys.argv[1]))
worst = 0.0
for name, family in (("gpt2", "gpt2"), ("llama3", "llama"), ("mistral", "llama"),
                     ("qwen3", "llama"), ("phi3_long", "llama"), ("pythia", "gpt_neox"),
                     ("opt_350m", "opt")):
    module = FAMILIES[family]
    hf_config = json.loads(golden[f"{name}/config"].tobytes())
    config = module.from_hf(hf_config)
    backbone = module.backbone(config)
    model = keras.Model(backbone.input, heads.lm_head(backbone.output, config, backbone))
    variables, table = weights.variables_of(model), get_weight_map(family, config)
    rows = weights.rows_of(variables, {**table.backbone, **table.heads["causal_lm"]})
    weights.to_variables(rows, variables, load(golden[f"{name}/tensors"].tobytes()))
    inputs = {key: golden[f"{name}/inputs/{key}"] for key in ("token_ids", "padding_mask")}
    outputs = keras.ops.convert_to_numpy(model(inputs))
    apart = np.abs(outputs - golden[f"{name}/logits"])[inputs["padding_mask"] == 1]
    worst = max(worst, float(apart.max()))
print(worst)
"""


ENCODER_DECODERS = """
import dataclasses
import json
import sys
import keras
import numpy as np
from safetensors.numpy import load
from tfllm import models
from tfllm.checkpoints import weights
from tfllm.layers import heads

assert keras.backend.backend() == sys.argv[2]
golden = dict(np.load(sys.argv[1]))
worst = 0.0
for name, family in (("marian", "transformer"), ("flan_t5", "t5"), ("mbart", "bart")):
    module = models.FAMILIES[family]
    tensors = load(golden[f"{name}/tensors"].tobytes())
    config = models.config_from_hf(family, json.loads(golden[f"{name}/config"].tobytes()))
    if family == "t5":
        config = dataclasses.replace(config, tie_embeddings="lm_head.weight" not in tensors)
    backbone = module.backbone(config)
    model = keras.Model(backbone.input, heads.lm_head(backbone.output, config, backbone))
    variables, table = weights.variables_of(model), models.get_weight_map(family, config)
    rows = weights.rows_of(variables, {**table.backbone, **table.heads["seq2seq"]})
    weights.to_variables(rows, variables, tensors)
    inputs = {key: golden[f"{name}/inputs/{key}"]
              for key in ("source_ids", "source_padding_mask", "token_ids", "padding_mask")}
    outputs = keras.ops.convert_to_numpy(model(inputs))
    apart = np.abs(outputs - golden[f"{name}/logits"])[inputs["padding_mask"] == 1]
    worst = max(worst, float(apart.max()))
print(worst)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "golden"),
    [
        (RUN, GOLDEN),
        (DECODERS, GOLDEN.with_name("decoders.npz")),
        (ENCODER_DECODERS, GOLDEN.with_name("encoder_decoders.npz")),
    ],
    ids=["encoder", "decoders", "encoder-decoders"],
)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_gives_the_golden_scores(backend, run, golden):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}: pip install {backend}")
    done = subprocess.run(
        [sys.executable, "-c", run, str(golden), backend],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < TOLERANCE
