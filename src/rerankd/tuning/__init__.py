"""`rerankd tune`: fine-tune a small cross-encoder on the user's own queries and documents.

With a teacher, the base model learns the teacher's scores (knowledge distillation) by the mean squared error
of logits, as Hofstätter et al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
Distillation" (2020), and the authors of the ms-marco-MiniLM cross-encoders did. Cross-encoders that learn
from a stronger model are often better than those that learn from judgements (Schlatt et al., "Rank-DistiLLM",
2025). Without a teacher, it learns the judgements by binary cross-entropy, as Nogueira and Cho, "Passage
Re-ranking with BERT" (2019).

This process plans, labels and measures; trainer/ is a program of its own, which alone imports PyTorch.
"""

from __future__ import annotations

from importlib.util import find_spec

from rerankd.errors import MissingExtra


def check_trainer() -> None:
    """Raise MissingExtra unless the libraries of `rerankd[tune]` are installed."""
    needed = ("torch", "sentence_transformers", "transformers", "accelerate", "datasets")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"rerankd tune needs libraries that are not installed: {', '.join(missing)}. To install them: "
            "pip install 'rerankd[tune,eval]' (with PyTorch's build for CUDA about 3 GB, with its build for "
            "CPUs 300 MB; see docs/gpu.md)"
        )
