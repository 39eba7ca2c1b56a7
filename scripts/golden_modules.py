"""Makes the golden files of sentence-transformers' layout: heads that are made of modules, and chat
templates.

A golden head is saved by CrossEncoder itself, and kept without what the tests have already: the body's
weights and the tokenizer, which are those of another golden checkpoint (`body` in golden.json). Values are
those of CrossEncoder in float32 with activation_fn=Identity. Matrices are about ten times as large as usual,
so that each part moves the score (see make_scaled.py).

    python scripts/golden_modules.py            makes the files again
    python scripts/golden_modules.py --check  makes them in a temporary folder and compares the values
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from tokenizers import Tokenizer, models
from transformers.utils.chat_template_utils import render_jinja_template

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
PROMPT = "Find what answers it: "
# Two computations of one value, in batches of other sizes, are as near as that.
NEAR = 2e-5
# What the tests have already.
BODY = ("model.safetensors", "tokenizer.json", "README.md")

Modules = list[torch.nn.Module]


def ettin(width: int) -> Modules:
    """The head of ettin-reranker."""
    return [
        Pooling(width, "cls"),
        Dense(width, width, bias=False, activation_function=torch.nn.GELU()),
        LayerNorm(width),
        scorer(width),
    ]


def normalized(width: int) -> Modules:
    return [
        Pooling(width, "mean"),
        Dense(width, 24, activation_function=torch.nn.Tanh()),
        Normalize(),
        scorer(24),
    ]


def residual(width: int) -> Modules:
    return [
        Pooling(width, "cls"),
        LayerNorm(width),
        Dropout(0.3),
        Dense(width, width, activation_function=torch.nn.ReLU(), use_residual=True),
        Dense(width, 40, bias=False, activation_function=torch.nn.SiLU(), use_residual=True),
        LayerNorm(40),
        scorer(40, bias=False),
    ]


def plain(width: int) -> Modules:
    return [Pooling(width, "mean"), scorer(width)]


def scorer(width: int, **options: Any) -> Dense:
    return Dense(width, 1, activation_function=torch.nn.Identity(), module_output_name="scores", **options)


# A golden head's name: the checkpoint whose body it is put upon, and the modules for its width.
HEADS: dict[str, tuple[str, Callable[[int], Modules]]] = {
    "ettin-scaled": ("scaled/modernbert-cls", ettin),
    "modernbert-plain": ("scaled/modernbert-mean", plain),
    "bert-normalized": ("scaled/bert", normalized),
    "xlmr-residual": ("scaled/xlmr", residual),
}


def randomise(modules: Modules, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        for name, weight in sorted(module.named_parameters()):
            values = torch.randn(weight.shape, generator=generator)
            is_norm = name.startswith("norm") and name.endswith("weight")
            std = 0.5 if weight.shape[0] == 1 else 2.0 / weight.shape[-1] ** 0.5
            weight.copy_(values * 0.3 + is_norm if weight.dim() == 1 else values * std)


def body(name: str, scratch: Path) -> Path:
    """A golden checkpoint with a tokenizer, for the library wants one; ids are given where it has none."""
    folder = scratch / name.replace("/", "-")
    shutil.copytree(GOLDEN / name, folder)
    if not (folder / "tokenizer.json").exists():
        size = json.loads((folder / "config.json").read_text())["vocab_size"]
        vocabulary = {f"t{at}": at for at in range(size - 1)} | {"[UNK]": size - 1}
        Tokenizer(models.WordLevel(vocabulary, "[UNK]")).save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "t0"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def cross_encoder(name: str, head: Callable[[int], Modules], seed: int, scratch: Path) -> CrossEncoder:
    transformer = Transformer(str(body(name, scratch)), transformer_task="feature-extraction")
    modules = head(transformer.get_embedding_dimension())
    randomise(modules, seed)
    identity = torch.nn.Identity()
    return CrossEncoder(modules=[transformer, *modules], activation_fn=identity, device="cpu").eval()


def of_ids(model: CrossEncoder, ids: list[int], second: int | None = None) -> float:
    """The raw value of ids, whatever texts they are of."""
    given: dict[str, Any] = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids)).long(),
    }
    if second is not None:
        given["token_type_ids"] = torch.tensor([[0] * second + [1] * (len(ids) - second)])
    return round(model({**given, "modality": "text"})["scores"][0, 0].item(), 6)


def save(model: CrossEncoder, folder: Path, scratch: Path) -> None:
    """What the library saves, but for what the tests have already."""
    saved = scratch / "saved" / folder.name
    model.save(str(saved))
    for file in BODY:
        (saved / file).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)


def make_head(name: str, seed: int, out: Path, scratch: Path) -> None:
    """A head upon a scaled body, with the values of that body's sequences."""
    of, head = HEADS[name]
    model = cross_encoder(of, head, seed, scratch)
    save(model, out / name, scratch)
    is_typed = of == "scaled/bert"
    cases = []
    for case in json.loads((GOLDEN / of / "golden.json").read_text()):
        raw = of_ids(model, case["ids"], case["second"] if is_typed else None)
        cases.append({**case, "raw": raw})
    write(out / name, {"body": of, "cases": cases})


def make_ettin(out: Path, scratch: Path) -> None:
    """ettin-reranker as a whole: texts in, the values of predict out, without and with a prompt; a pair
    that is too long is cut as the library cuts it. One that spells special tokens has the value of the ids
    that rerankd gives it, where these fit (see tests/golden/README.md)."""
    of = "modernbert-head"
    model = cross_encoder(of, ettin, 31, scratch)
    save(model, out / "ettin", scratch)
    pairs = json.loads((GOLDEN / "pairs.json").read_text(encoding="utf-8"))
    ids = {case["id"]: case.get("ids") for case in json.loads((GOLDEN / f"{of}.json").read_text())["cases"]}
    texts = [(pair["query"], pair["document"]) for pair in pairs]
    raw, prompted = (
        model.predict(texts, activation_fn=torch.nn.Identity(), prompt=prompt).tolist()
        for prompt in (None, PROMPT)
    )
    cases = []
    special = [token for token in model.tokenizer.get_added_vocab() if token.strip()]
    for pair, (query, document), value, other in zip(pairs, texts, raw, prompted, strict=True):
        found, case = ids[pair["id"]], {"id": pair["id"]}
        # Where a text spells a special token, the library reads it as one.
        if any(token in text for token in special for text in (query, document)):
            if found is not None:
                cases.append(case | {"raw": of_ids(model, found)})
            continue
        if found is not None:
            assert abs(of_ids(model, found) - value) < NEAR, pair["id"]
        cases.append(case | {"raw": round(value, 6), "prompted": round(other, 6)})
    write(out / "ettin", {"body": of, "prompt": PROMPT, "cases": cases})


# Chat templates in the ways that rerankers write them: {name: (source, variables, prompt)}.
SELECT = '{{ messages | selectattr("role", "eq", "%s") | map(attribute="content") | first }}'
QWEN3 = f"""<|im_start|>system
Judge whether the Document meets the requirements.<|im_end|>
<|im_start|>user
<Instruct>: {{{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first
| default("Given a web search query, retrieve relevant passages") }}}}
<Query>: {SELECT % "query"}
<Document>: {SELECT % "document"}<|im_end|>
{{% if add_generation_prompt %}}<|im_start|>assistant
<think>

</think>

{{% endif %}}"""
MXBAI = """{%- set ns = namespace(instruction="", query="", document="") -%}
{%- for message in messages -%}
{%- if message.role == "system" %}{% set ns.instruction = "instruction: " ~ message.content ~ "\n" %}{% endif
-%} {%- if message.role == "query" %}{% set ns.query = message.content %}{% endif -%}
{%- if message.role == "document" %}{% set ns.document = message.content %}{% endif -%}
{%- endfor -%}
{{ bos_token }}{{ ns.instruction }}query: {{ ns.query }}
document: {{ ns.document }}
You are a search relevance expert: """
STRUCTURED = """{% for message in messages %}{% if message.role != "system" %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == "text" %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% generation %}<|im_start|>assistant
{% endgeneration %}"""
TEMPLATES: dict[str, tuple[str, dict[str, Any], str]] = {
    "qwen3": (QWEN3, {"add_generation_prompt": True}, ""),
    "qwen3, a prompt": (QWEN3, {"add_generation_prompt": True}, "Find code"),
    "qwen3, nothing after the document": (QWEN3, {}, ""),
    "mxbai": (MXBAI, {"bos_token": "<s>"}, ""),
    "mxbai, a prompt": (MXBAI, {"bos_token": "<s>"}, "Be strict"),
    "structured": (STRUCTURED, {}, ""),
}
TEXTS = [
    ("What is a panda?", "大熊猫 🐼 is a bear."),
    (" {query} ", "<b>&amp;</b>\n\n"),
    ("{{ x }}", "</s> {document}"),
]


def make_templates(out: Path) -> None:
    """What transformers renders of each template, for texts without a system message and with one."""
    made = []
    for name, (source, variables, prompt) in TEMPLATES.items():
        rendered = []
        for instruction in (prompt or None, "Only recent ones"):
            for query, document in TEXTS:
                messages = messages_of(instruction, query, document, is_structured="part" in source)
                texts, _ = render_jinja_template([messages], chat_template=source, **variables)
                rendered.append(
                    {"instruction": instruction, "query": query, "document": document, "text": texts[0]}
                )
        made.append(
            {"name": name, "source": source, "variables": variables, "prompt": prompt, "rendered": rendered}
        )
    (out / "templates.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")


def messages_of(instruction: str | None, *texts: str, is_structured: bool) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if is_structured else text}
        for role, text in zip(("system", "query", "document"), (instruction, *texts), strict=True)
        if text is not None
    ]


def write(folder: Path, golden: dict[str, Any]) -> None:
    (folder / "golden.json").write_text(json.dumps(golden, ensure_ascii=False).replace("}, ", "},\n ") + "\n")
    raws = [case["raw"] for case in golden["cases"]]
    print(f"{folder.name}: {len(raws)} values, {min(raws):.3f} to {max(raws):.3f}", flush=True)


def make_all(out: Path) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as scratch:
        make_ettin(out, Path(scratch) / "ettin")
        for seed, name in enumerate(HEADS, 41):
            make_head(name, seed, out, Path(scratch) / name)
    make_templates(out)


def differences(made: Path, kept: Path) -> Iterator[str]:
    """Which values are others than those that are kept."""
    for file in sorted(made.rglob("golden.json")):
        new, old = (json.loads((root / file.relative_to(made)).read_text()) for root in (made, kept))
        for one, other in zip(new["cases"], old["cases"], strict=True):
            for key in ("raw", "prompted"):
                if abs(one.get(key, 0) - other.get(key, 0)) > NEAR:
                    yield f"{file.parent.name}: {one} where {other} is kept"
    if (made / "templates.json").read_text() != (kept / "templates.json").read_text():
        yield "templates.json is another one"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=GOLDEN / "modules")
    parser.add_argument("--check", action="store_true", help="compare the values, and change no file")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if not args.check:
        make_all(args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_all(Path(folder))
        found = [*differences(Path(folder), args.out)]
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
