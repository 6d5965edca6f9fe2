"""Model families, one file each: `Config`, `backbone(config)`, `from_hf`, `WEIGHTS`."""

from tfllm.models import bert

FAMILIES = {"bert": bert}
