"""Rerankers that read images, with transformers' classes: values, batches, and hostile files.

The models are tiny and random. The reference is the library's model with the library's image processor and a
prompt whose control tokens the tokenizer reads. Needs PyTorch and Pillow: `make test-torch`.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")
transformers = pytest.importorskip("transformers", reason="make test-torch")
pillow = pytest.importorskip("PIL.Image", reason="make test-torch")

from tokenizers import Tokenizer

import checkpoints
import hostile_images
from rerankd.backends.torch.vision import patches
from rerankd.config import Settings
from rerankd.content import Content, Document, Image, ImageInput
from rerankd.formats.image_processor import ImageProcessor
from rerankd.service import Reranker
from support import GOLDEN, asking

BOUND = 1e-3
MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
LEAST, MOST = 4, 40
PROMPT = "<|im_start|>Judge: {instruction}<Query>:{query}\n<Document>:{document}<|im_end|>\n"
OF_JINA = "**Document**:\n{document}\n**Query**:\n{query}<|score_token|>"
TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096, "vocab_size": 1664,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2],
                        "mrope_interleaved": True},
}  # fmt: skip


def tokenizer(folder: Path) -> dict[str, int]:
    """Copy a golden tokenizer, with the control tokens of images. Returns their ids."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "qwen3-headless" / name, folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    ids = {text: 1605 + at for at, text in enumerate(MARKS)}
    like = said["added_tokens"][0]
    said["added_tokens"] += [{**like, "id": at, "content": text} for text, at in ids.items()]
    (folder / "tokenizer.json").write_text(json.dumps(said))
    return ids


def scaled(model: Any) -> Any:
    """Random weights that make each part of the model count."""
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.15 + (weight.dim() == 1) * 0.5
    return model.eval()


def qwen3_vl(folder: Path) -> Any:
    ids = tokenizer(folder)
    config = transformers.Qwen3VLConfig(
        text_config=TEXT,
        vision_config={
            "depth": 4, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "patch_size": 16,
            "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2],
        },
        image_token_id=ids[MARKS[1]], vision_start_token_id=ids[MARKS[0]],
        vision_end_token_id=ids[MARKS[2]], video_token_id=1620, tie_word_embeddings=False,
    )  # fmt: skip
    model = scaled(transformers.Qwen3VLForConditionalGeneration(config))
    model.save_pretrained(folder)
    preprocessor(folder, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return model


class JinaVL(torch.nn.Module):
    """What the code of jina-reranker-m0 adds to Qwen2-VL."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.model = transformers.Qwen2VLModel(config)
        self.score = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))


def jina_vl(folder: Path, *, old_names: bool = False) -> Any:
    from safetensors.torch import save_file

    ids = tokenizer(folder)
    config = transformers.Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": TEXT["rope_parameters"] | {"mrope_section": [2, 3, 3]}},
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2},
        image_token_id=ids[MARKS[1]], vision_start_token_id=ids[MARKS[0]],
        vision_end_token_id=ids[MARKS[2]], video_token_id=1620,
    )  # fmt: skip
    model = scaled(JinaVL(config))
    tensors = {name: one.contiguous() for name, one in model.state_dict().items()}
    if old_names:
        tensors = {
            name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): one
            for name, one in tensors.items()
        }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    checkpoints.edit(
        folder / "config.json", architectures=["JinaVLForRanking"], auto_map={"AutoModel": "modeling.X"}
    )
    preprocessor(folder, patch_size=14)
    return model


def preprocessor(folder: Path, **more: Any) -> None:
    side = more["patch_size"] * 2
    size = {"shortest_edge": LEAST * side**2, "longest_edge": MOST * side**2}
    said = {"image_processor_type": "Qwen2VLImageProcessor", "size": size, "merge_size": 2, **more}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def picture(width: int, height: int, seed: int, kind: str = "PNG", **more: Any) -> bytes:
    values = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    whole = pillow.fromarray(values).resize((width, height), 3)
    held = io.BytesIO()
    whole.save(held, kind, **more)
    return held.getvalue()


def shown(*images: bytes, text: str = "") -> Document:
    return Document((*(Image(one) for one in images), *((text,) if text else ())))


PAIRS: list[tuple[Content, Content]] = [
    ("what is a panda?", "a bear of China"),
    ("what is a panda?", shown(picture(100, 70, 1))),
    ("what is a panda?", shown(picture(300, 200, 2), text="a bear <|im_end|> of China")),
    (shown(picture(64, 64, 3), text="this one?"), shown(picture(40, 90, 4), picture(90, 40, 5))),
    (shown(picture(200, 20, 6)), "a kind of bread"),
]


def reference(model: Any, folder: Path, query: Content, document: Content) -> float:
    """The raw score of a pair by the library's own parts."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    is_jina = isinstance(model, JinaVL)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    sides = {"query": query, "document": document}
    order = ("document", "query") if is_jina else ("query", "document")
    images = [
        pillow.open(io.BytesIO(one.data)).convert("RGB")
        for side in order
        for one in (sides[side].images if isinstance(sides[side], Document) else ())
    ]
    given = dict(processor(images=images, return_tensors="pt")) if images else {}
    counts = iter([int(grid.prod()) // 4 for grid in given.get("image_grid_thw", ())])
    words = {"instruction": "which?"}
    for side in order:
        content = sides[side]
        marks = [
            MARKS[0] + MARKS[1] * next(counts) + MARKS[2]
            for _ in (content.images if isinstance(content, Document) else ())
        ]
        text = content.text if isinstance(content, Document) else content
        words[side] = "".join(marks) + text.replace("<|im_end|>", "<| im_end|>")
    prompt = (OF_JINA.replace("<|score_token|>", "") if is_jina else PROMPT).format(**words)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids + [100] * is_jina
    row = torch.tensor([ids])
    given |= {"input_ids": row, "mm_token_type_ids": (row == 1606).long(), "attention_mask": row * 0 + 1}
    if not images:
        del given["mm_token_type_ids"]
    with torch.no_grad():
        if is_jina:
            return float(model.score(model.model(**given).last_hidden_state[:, -1]))
        logits = model(**given).logits[0, -1]
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        return float(logits[vocabulary["y"]] - logits[vocabulary["n"]])


def settings(folder: Path, home: Path, **more: Any) -> Settings:
    is_jina = "JinaVL" in (folder / "config.json").read_text()
    scoring = {"template": OF_JINA} if is_jina else {
        "template": PROMPT, "labels": ["y", "n"], "instruction": "which?"
    }  # fmt: skip
    serving = {"model": str(folder), "home": home, "engine": "torch", "device": "cpu", "precision": "f32"}
    return Settings.model_validate({**serving, "cache_entries": 0, "force": True, "scoring": scoring, **more})


# A special token in a text is plain text to rerankd; the reference spells it otherwise.
TEXTS_ALIKE = [pair for pair in PAIRS if "<|im_end|>" not in str(pair)]


@pytest.mark.parametrize("make", [qwen3_vl, jina_vl], ids=["qwen3-vl", "jina-m0"])
async def test_raw_values_are_those_of_transformers(make: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = make(folder)
    async with Reranker(settings(folder, tmp_path / "home")) as reranker:
        for query, document in TEXTS_ALIKE:
            found = await reranker.rerank(query, [document], raw_scores=True)
            assert not found.errors, found.errors
            wanted = reference(model, folder, query, document)
            assert found.results[0].score == pytest.approx(wanted, abs=BOUND)
        # Alone, together, and in another order.
        query = TEXTS_ALIKE[0][0]
        documents = [document for _, document in PAIRS]
        together = await reranker.rerank(query, documents, raw_scores=True)
        alone = [(await reranker.rerank(query, [one], raw_scores=True)).results[0].score for one in documents]
        scores = {row.index: row.score for row in together.results}
        assert [scores[at] for at in range(len(documents))] == pytest.approx(alone, abs=BOUND)
        assert len({round(one, 3) for one in alone}) == len(alone)


async def test_older_names_of_tensors_are_read(tmp_path: Path) -> None:
    values = []
    for name, is_old in (("new", False), ("old", True)):
        folder = tmp_path / name
        folder.mkdir()
        jina_vl(folder, old_names=is_old)
        async with Reranker(settings(folder, tmp_path / "home")) as reranker:
            found = await reranker.rerank("a", [PAIRS[1][1]], raw_scores=True)
            values.append(found.results[0].score)
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_patches_are_those_of_the_library(tmp_path: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = pillow.open(io.BytesIO(picture(123, 77, 1))).convert("RGB")
    size = {"shortest_edge": LEAST * 28**2, "longest_edge": MOST * 28**2}
    library = Qwen2VLImageProcessorPil(size=size)
    wanted = library(images=[image], return_tensors="np")
    mine = ImageProcessor(14, 2, 2, (1, 1), tuple(library.image_mean), tuple(library.image_std))
    reads = ImageInput(MARKS, 28, LEAST, MOST)
    resized = image.resize(reads.resized(*image.size), 3)
    values, grid = patches(np.asarray(resized), mine)
    assert grid == tuple(wanted["image_grid_thw"][0])
    assert np.abs(values - wanted["pixel_values"]).max() < 1e-5


@pytest.fixture(scope="module")
async def reranker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reranker]:
    folder = tmp_path_factory.mktemp("vision") / "model"
    folder.mkdir()
    qwen3_vl(folder)
    async with Reranker(settings(folder, folder.parent / "home")) as found:
        yield found


def resident_bytes(pid: int | str, name: str = "VmRSS") -> int:
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024


async def test_hostile_files_get_a_score_or_a_sentence_and_memory_stays_flat(reranker: Reranker) -> None:
    files = hostile_images.files()
    assert len(files) >= 20
    await reranker.rerank("a", [shown(picture(64, 64, 1))])
    (pid,) = reranker._first().pids
    before = resident_bytes("self"), resident_bytes(pid)
    for _ in range(3):
        found = await reranker.rerank("a", [shown(data) for data, _ in files.values()])
        reasons = {one.index: one.reason for one in found.errors}
        for at, (name, (_, says)) in enumerate(files.items()):
            assert says in reasons.get(at, ""), (name, reasons.get(at))
            assert bool(says) == (at in reasons), (name, reasons.get(at))
    assert reranker._first().pids == [pid]
    grown = resident_bytes("self") - before[0], resident_bytes(pid) - before[1]
    assert grown[0] < 32 * 2**20 and grown[1] < 200 * 2**20, grown


async def test_an_image_is_turned_as_its_exif_data_says_and_transparency_is_white(reranker: Reranker) -> None:
    whole = pillow.open(io.BytesIO(picture(120, 60, 1)))
    turned, exif = io.BytesIO(), pillow.Exif()
    exif[0x0112] = 6  # shown, it is turned by 90 degrees clockwise
    whole.transpose(pillow.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    clear = io.BytesIO()
    pillow.new("RGBA", (120, 60), (255, 0, 0, 0)).save(clear, "PNG")
    white = io.BytesIO()
    pillow.new("RGB", (120, 60), "white").save(white, "PNG")
    files = [picture(120, 60, 1), turned.getvalue(), clear.getvalue(), white.getvalue()]
    found = await reranker.rerank("a", [shown(one) for one in files], raw_scores=True)
    scores = {row.index: row.score for row in found.results}
    assert scores[0] == pytest.approx(scores[1], abs=1e-4) and scores[2] == pytest.approx(scores[3], abs=1e-4)
    assert abs(scores[0] - scores[2]) > 1e-3


async def test_pixels_count_as_tokens(reranker: Reranker) -> None:
    text = (await reranker.rerank("a", ["b"])).tokens
    small, large = [(await reranker.rerank("a", [shown(picture(*size, 1), text="b")])).tokens
                    for size in ((64, 64), (192, 192))]  # fmt: skip
    assert small == text + 2 + 4 and large == text + 2 + 36


async def test_a_request_over_http_gets_scores_and_the_reason_of_a_damaged_image(reranker: Reranker) -> None:
    data = base64.b64encode(picture(64, 64, 1)).decode()
    documents = [
        {"image": f"data:image/png;base64,{data}"},
        {"text": "b", "image": data},
        "c",
        {"image": data[:80]},
    ]
    async with asking(reranker) as client:
        answer = await client.post("/v1/rerank", json={"query": {"image": data}, "documents": documents})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert [row["index"] for row in said["results"]][-1] == 3 and len(said["results"]) == 4
    (error,) = said["meta"]["errors"]
    assert error["index"] == 3 and "can't be decoded" in error["reason"]


async def test_a_text_beside_images_is_truncated_and_images_are_not(reranker: Reranker) -> None:
    wide = picture(256, 160, 1)
    long = await reranker.rerank("a", [shown(wide, text="bread " * 5000), shown(*[wide] * 110), "b"])
    assert long.truncated == (0,)
    ((at, reason),) = [(one.index, one.reason) for one in long.errors]
    assert at == 1 and "more tokens than the model can read" in reason
