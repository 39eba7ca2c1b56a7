"""preprocessor_config.json: how a checkpoint of Qwen2-VL or Qwen3-VL resizes and normalizes images.

Source: Qwen2VLImageProcessor of transformers 5. Newer checkpoints have the same values in the object
`image_processor` of processor_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerankd.content import ImageInput

# The control tokens before an image, for each of its blocks, and after it, in both families.
_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
# Of transformers' Qwen2VLImageProcessor, whose normalization is that of CLIP.
_PIXELS = (56 * 56, 28 * 28 * 1280)
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """Sizes in pixels: an image is divided into patches of `patch` by `patch`, of which `merge` by `merge`
    are a block; it is repeated `frames` times, as a video. `pixels` are the fewest and the most of an
    image."""

    patch: int
    merge: int
    frames: int
    pixels: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def side(self) -> int:
        """The side of a block."""
        return self.patch * self.merge

    @property
    def blocks(self) -> tuple[int, int]:
        """The fewest and the most blocks of an image."""
        least, most = self.pixels
        return max(least // self.side**2, 1), max(most // self.side**2, 1)

    def input(self, blocks: tuple[int, int] | None) -> ImageInput:
        """How the model reads images that have this many blocks."""
        return ImageInput(_TOKENS, self.side, *(blocks or self.blocks))


def read(said: Mapping[str, Any]) -> ImageProcessor | str:
    """The image processor of a file with these values, or why rerankd does not support it, as a clause."""
    own = said.get("image_processor")
    said = own if isinstance(own, Mapping) else said
    kind = str(said.get("image_processor_type", ""))
    if not kind.startswith("Qwen2VLImageProcessor"):
        return f"its image processor is {kind or 'not declared'!r:.60}, not Qwen2VLImageProcessor"
    for key, expected in (("do_resize", True), ("do_rescale", True), ("do_normalize", True), ("resample", 3)):
        if said.get(key, expected) != expected:
            return f"its image processor has {key} = {said[key]!r:.40}, not {expected}"
    if abs(float(said.get("rescale_factor") or 1 / 255) - 1 / 255) > 1e-9:
        return f"its image processor has rescale_factor = {said['rescale_factor']!r:.40}, not 1/255"
    size = said.get("size") if isinstance(said.get("size"), Mapping) else {}
    assert isinstance(size, Mapping)
    numbers = [
        said.get("patch_size") or 14,
        said.get("merge_size") or 2,
        said.get("temporal_patch_size") or 2,
        said.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or _PIXELS[0],
        said.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or _PIXELS[1],
    ]
    if not all(type(one) is int and 0 < one < 2**31 for one in numbers):
        return f"its image processor has an invalid size: {numbers!r:.80}"
    colours = [said.get("image_mean") or _MEAN, said.get("image_std") or _STD]
    if not all(len(one) == 3 and all(isinstance(x, int | float) for x in one) for one in colours):
        return "its image processor has an invalid mean or deviation"
    patch, merge, frames, least, most = numbers
    return ImageProcessor(patch, merge, frames, (least, most), *map(tuple, colours))
