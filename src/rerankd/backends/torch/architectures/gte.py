"""mGTE (gte-multilingual-reranker). It computes the same as GteModel of transformers, and as NewModel of
Alibaba-NLP/new-impl."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.architecture import Part, Parts
from rerankd.backends.torch.architectures.bert import Bert
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.layers import Named, Rotary, Rotation, rotated
from rerankd.formats.weights import Weights


class Gte(Bert):
    """mGTE: BERT with rotary positions and GeGLU. The two halves of GeGLU's matrix are joined by rows, the
    gate second."""

    has_positions = False

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        rotary = Rotary(weights.key("rope.freq_base"), weights.key("rope.scaling.factor", 1.0))
        self.attentions = (Attention(rotary=rotary),) * len(self.attentions)
        width, hidden = self.state_width, weights.key("feed_forward_length")
        self.layer_tensors: Parts = {**self.layer_tensors, "up": (Part("ffn_up", (2 * hidden, width)),)}

    def project(self, x: Tensor, weights: Named, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        assert rotation is not None
        q, k, v = super().project(x, weights, rotation)
        return rotated(q, rotation), rotated(k, rotation), v

    def inner(self, up: Tensor) -> Tensor:
        inner, gate = up.chunk(2, -1)
        return F.gelu(gate) * inner
