"""Rerankers that read images: Qwen3-VL-Reranker and jina-reranker-m0, computed by transformers.

The service tokenizes, so an input has the same token ids as anywhere else; the ids of an image's blocks are
among them. transformers computes vision tower and language model; the score is computed here from the last
token's final state, in float32: the difference of two rows of the output matrix, or jina-reranker-m0's two
layers.

Sources: Qwen3VLModel, Qwen2VLModel and Qwen2VLImageProcessor of transformers 5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rerankd.backends.torch import OFFLINE

# Before the libraries are imported: they read these variables once.
os.environ |= OFFLINE

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch import budget
from rerankd.backends.torch.architecture import Unsupported
from rerankd.backends.worker.images import ImageReader
from rerankd.backends.worker.passes import Pause, Pending, Pixels, Reading, Vectors, never, padded, split
from rerankd.formats import checkpoint_files, vision_class
from rerankd.formats.image_processor import ImageProcessor

# From the names of Qwen2-VL's tensors in files, with or without a name for the text model, to Qwen2VLModel's.
_NAMES = {r"^model\.visual\.": "visual.", r"^model\.(?!visual)(language_model\.)?": "language_model."}


class VisionReranker:
    """A loaded model (see scorer.Network). `reads_images` decodes images for it. Not thread-safe.

    With `labels` the raw score is logit[first] - logit[second]. `blocks`: the fewest and the most of an
    image; 0 if it reads text alone. Raises Unsupported if the files are of another class.
    """

    passes_ahead = 0

    def __init__(
        self,
        path: Path,
        *,
        labels: Sequence[int],
        blocks: Sequence[int],
        device: str,
        dtype: torch.dtype,
    ) -> None:
        import transformers

        config = _json(path / checkpoint_files.CONFIG)
        (kind,) = config["architectures"]
        if kind not in vision_class.CLASSES:
            raise Unsupported(f"the class {kind} is not known")
        is_jina = vision_class.CLASSES[kind] == vision_class.JINA_VL
        loaded = transformers.Qwen2VLModel if is_jina else transformers.Qwen3VLModel
        found = loaded.from_pretrained(
            str(path),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            key_mapping=_NAMES if is_jina else None,
            output_loading_info=True,
        )
        self._model: Any = found[0]
        if missing := sorted(found[1]["missing_keys"]):
            raise Unsupported(f"its files lack the tensor {missing[0]}, and {len(missing) - 1} others")
        self._model.to(device).eval()
        self._device = device
        table = self._model.get_input_embeddings()
        self.rows: int = table.num_embeddings
        self._head = _mlp(path, device) if is_jina else _labels(path, table.weight, labels, device)
        self._image_id: int = self._model.config.image_token_id
        self._processor = vision_class.processor(lambda name: _json(path / name)) if any(blocks) else None
        self.reads_images = None
        if self._processor is not None:
            self.reads_images = ImageReader(self._processor.input((blocks[0], blocks[1])))
        precision = str(dtype).removeprefix("torch.")
        self.about = (
            f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {precision}, {device}"
        )

    def passes(self, readings: Sequence[Reading]) -> list[list[int]]:
        return split([len(one.ids) for one in readings], budget.ON_CPU, lambda count, longest: count)

    def start(self, readings: Sequence[Reading], pause: Pause = never) -> Pending:
        ids, lengths, _ = padded(readings)
        # Padding is on the left, because the last token's state is read.
        columns = np.arange(ids.shape[1])
        is_token = columns >= (ids.shape[1] - lengths)[:, None]
        ids = np.take_along_axis(ids, (columns - (ids.shape[1] - lengths)[:, None]) % ids.shape[1], 1)
        arrays = {
            "input_ids": np.where(is_token, ids, 0),
            "attention_mask": is_token.astype(np.int64),
            "mm_token_type_ids": (is_token & (ids == self._image_id)).astype(np.int64),
        }
        images = [image for one in readings for image in one.images]
        if images:
            assert self._processor is not None
            made = [patches(image, self._processor) for image in images]
            arrays["pixel_values"] = np.concatenate([values for values, _ in made])
            arrays["image_grid_thw"] = np.array([grid for _, grid in made])
        with torch.inference_mode():
            given: dict[str, Any] = {
                name: torch.from_numpy(one).to(self._device) for name, one in arrays.items()
            }
            positions, _ = self._model.get_rope_index(
                given["input_ids"],
                given["mm_token_type_ids"],
                image_grid_thw=given.get("image_grid_thw"),
                attention_mask=given["attention_mask"],
            )
            states = self._model(**given, position_ids=positions, use_cache=False).last_hidden_state
            found: Vectors = self._head(states[:, -1].float()).cpu().numpy()
        return lambda: found


def patches(image: Pixels, processor: ImageProcessor) -> tuple[Vectors, tuple[int, int, int]]:
    """The normalized patches of an image [patches, values], block by block, and how many there are: (1, rows,
    columns)."""
    mean, std = (np.array(one, np.float32) for one in (processor.mean, processor.std))
    values: Vectors = (image.astype(np.float32) / np.float32(255) - mean) / std
    patch, merge = processor.patch, processor.merge
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    grid = values.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    blocks = grid.transpose(
        0, 3, 1, 4, 6, 2, 5
    )  # block rows and columns, those within a block, colour, pixels
    frames = np.repeat(blocks[:, :, :, :, :, None], processor.frames, 5)
    return frames.reshape(rows * columns, -1), (1, rows, columns)


def _labels(path: Path, table: Tensor, labels: Sequence[int], device: str) -> Any:
    """The difference of the labels' logits. Without an output matrix, the model's is the embedding matrix."""
    rows = _tensor(path, "lm_head.weight")
    weight = (table if rows is None else rows)[list(labels)].float().to(device)
    weight = weight[:1] - weight[1:] if len(labels) == 2 else weight
    return lambda state: F.linear(state, weight)


def _mlp(path: Path, device: str) -> Any:
    """The two layers of jina-reranker-m0."""
    names = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
    found = [_tensor(path, name) for name in names]
    if any(one is None for one in found):
        raise Unsupported("its files lack the layers score.0 and score.2")
    first, first_bias, second, second_bias = (one.float().to(device) for one in found if one is not None)
    return lambda state: F.linear(F.relu(F.linear(state, first, first_bias)), second, second_bias)


def _tensor(path: Path, name: str) -> Tensor | None:
    """A tensor of the files, None if there is none of this name."""
    from safetensors import safe_open

    for file in sorted(path.glob(f"*{checkpoint_files.SUFFIX}")):
        with safe_open(file, framework="pt") as held:
            if name in held.keys():  # noqa: SIM118  it is not a mapping
                found: Tensor = held.get_tensor(name)
                return found
    return None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
