"""A vector per text whose cosine says how alike two texts are (Reimers and Gurevych 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tfllm.tasks.base import Task, float32

if TYPE_CHECKING:
    import keras


class Embedding(Task):
    """Pooled hidden states."""

    kind: Literal["embedding"] = "embedding"
    pooling: Literal["mean", "first", "pooler"] = "mean"
    """Mean over real tokens, the first token, or the family's trained pooler."""
    normalize: bool = True
    """Vectors of length 1."""
    scale: float = Field(default=20.0, gt=0)
    """Training: factor of the cosines before the softmax over the batch."""

    def model(self, backbone: keras.Model, config: Any) -> keras.Model:
        """Vectors [B, D]."""
        import keras

        from tfllm.layers import heads

        hidden = backbone.output
        if self.pooling == "pooler":
            vectors = heads.summary(hidden, config)
            if self.normalize:
                vectors = keras.layers.UnitNormalization(dtype="float32", name="unit")(vectors)
        else:
            vectors = heads.embed(hidden, backbone.input["mask"], self.pooling, self.normalize)
        return keras.Model(backbone.input, float32(vectors), name=self.kind)
