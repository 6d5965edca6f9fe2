"""The GPT-2 of tests/golden/generation.npz as a Decoder."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

from tfllm.checkpoints import weights
from tfllm.models import FAMILIES
from tfllm.models.decoder import Decoder, get_decoder

FILE = Path(__file__).parent.parent / "golden" / "generation.npz"


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


@functools.cache
def gpt2() -> Decoder:
    family = FAMILIES["gpt2"]
    config = family.from_hf(json.loads(str(golden()["config"])))
    backbone = family.backbone(config)
    tensors = {
        name.removeprefix("model/"): value
        for name, value in golden().items()
        if name.startswith("model/")
    }
    variables = weights.variables_of(backbone)
    rows = weights.rows_of(variables, family.WEIGHTS["gpt2"].backbone)
    assert set(rows) == set(variables)
    weights.to_variables(rows, variables, tensors)
    return get_decoder(backbone, "gpt2", config)
