"""The reference path: sentence-transformers' CrossEncoder, for models without an architecture file here.

The service tokenizes, as for every engine, and the library's modules compute: so an input has the same token
ids on every engine. The library's own tokenizing would differ. transformers 5 replaces parts of a model's
tokenizer.json, control tokens that a text spells would become control tokens, and long texts would be
truncated without an error.

Nothing is downloaded, and code in the model's own files runs only if the user trusts it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rerankd.backends.torch import OFFLINE

# Before the libraries are imported: they read these variables once.
os.environ |= OFFLINE

import numpy as np
import torch

from rerankd.backends.torch import budget, model_code
from rerankd.backends.torch.architecture import Unsupported
from rerankd.backends.worker.passes import Integers, Padding, Vectors
from rerankd.formats import checkpoint_files

# The module that computes a causal model's score.
_LOGITS = "LogitScore"


class Reference(Padding):
    """A loaded CrossEncoder (see scorer.Network); a raw score is its value before any activation. Not
    thread-safe.

    Raises Unsupported if the model has code of its own and `trusts_code` is not set, if its weights are
    pickled, or if its input is not a pair of texts.
    """

    tokens_a_pass = budget.ON_CPU
    library_class = "CrossEncoder"
    hides_tokens = False
    """Whether ids that are not attended are tokens, and no padding."""

    def __init__(self, path: Path, *, device: str, dtype: torch.dtype, trusts_code: bool = False) -> None:
        _check(path, trusts_code=trusts_code)
        import sentence_transformers

        self._model: Any = getattr(sentence_transformers, self.library_class)(
            str(path),
            device=device,
            local_files_only=True,
            trust_remote_code=trusts_code,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
        ).eval()
        body = self._model.transformers_model
        self.rows: int = body.get_input_embeddings().num_embeddings
        self._pad: int = body.config.pad_token_id or 0
        self._device = device
        # It reads the logits of the last position.
        self._pads_left = any(type(one).__name__ == _LOGITS for one in self._model)
        precision = str(dtype).removeprefix("torch.")
        version = sentence_transformers.__version__
        self.about = f"sentence-transformers {version}, PyTorch {torch.__version__}, {precision}, {device}"

    def whole(self, count: int, longest: int) -> int:
        return count

    def forward(self, ids: Integers, lengths: Integers, seconds: Integers) -> Vectors:
        """See passes.Forward."""
        columns = np.arange(ids.shape[1])
        is_token = columns < lengths[:, None]
        if self._pads_left:
            shift = (columns - (ids.shape[1] - lengths)[:, None]) % ids.shape[1]
            ids, is_token = np.take_along_axis(ids, shift, 1), np.take_along_axis(is_token, shift, 1)
        arrays = {
            "input_ids": ids if self.hides_tokens else np.where(is_token, ids, self._pad),
            "attention_mask": is_token.astype(np.int64),
        }
        if (seconds < lengths).any():
            arrays["token_type_ids"] = (is_token & (columns >= seconds[:, None])).astype(np.int64)
        with torch.inference_mode():
            features: dict[str, Any] = {
                name: torch.from_numpy(one).to(self._device) for name, one in arrays.items()
            }
            if self._pads_left:
                features["logits_to_keep"] = 1
            return self.values(features)

    def values(self, features: dict[str, Any]) -> Vectors:
        """What the model returns for each input of a batch, or for each of its tokens."""
        scores = self._model(features)["scores"].float().cpu().numpy()
        return _raw(scores.reshape(len(scores), -1))


class TokenReference(Reference):
    """The same for a late-interaction model: a MultiVectorEncoder, which returns a vector for each token."""

    library_class = "MultiVectorEncoder"
    hides_tokens = True

    def values(self, features: dict[str, Any]) -> Vectors:
        found: Vectors = self._model(features)["token_embeddings"].float().cpu().numpy()
        return found


def _raw(scores: Vectors) -> Vectors:
    """The raw values [inputs, 1]; of two labels the second minus the first. Raises RuntimeError for more."""
    if scores.shape[1] > 2:
        raise RuntimeError(f"the model returns {scores.shape[1]} values for a pair")
    return scores if scores.shape[1] == 1 else scores[:, 1:] - scores[:, :1]


def _check(path: Path, *, trusts_code: bool) -> None:
    """Raise Unsupported if the model must not be loaded."""
    config, modules, transformer = (
        _json(path / name)
        for name in (checkpoint_files.CONFIG, checkpoint_files.MODULES, checkpoint_files.TRANSFORMER)
    )
    if (name := model_code.custom(config or {}, modules)) and not trusts_code:
        raise Unsupported(f"its files contain code ({name}), which runs only with trust_remote_code = true")
    if pickle := model_code.pickled(checkpoint_files.paths_in(path)):
        raise Unsupported(f"its weights are pickled ({pickle}), which can execute code when loaded")
    is_prompt = any(str(one.get("type", "")).endswith(f".{_LOGITS}") for one in modules or ())
    if not is_prompt and "message" in ((transformer or {}).get("modality_config") or {}):
        raise Unsupported("its input is formatted by a chat template")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
