"""sentence_bert_config.json: how the Transformer module of sentence-transformers passes a pair to its model.

Raises `NotUnderstood` for an unknown key or value, because it may change the score.

Source: sentence-transformers 6.2 (base/modules/transformer.py). The chat template is chosen as in
get_chat_template of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rerankd.formats.chat_template import Chat
from rerankd.formats.checkpoint_files import (
    ADDITIONAL_TEMPLATES,
    CHAT_TEMPLATE,
    TOKENIZER_CONFIG,
    TRANSFORMER,
)

# The output of the model that each task uses, and the name that the other modules have for it.
_OUTPUTS = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
    "text-generation": ("logits", "causal_logits"),
    "any-to-any": ("logits", "causal_logits"),
}
# How to avoid padding, and the lengths of texts that are encoded separately; a cross-encoder joins them.
_HARMLESS = ("unpad_inputs", "query_length", "document_length")
_READ = (
    "transformer_task", "modality_config", "module_output_name", "processing_kwargs", "max_seq_length",
    "do_lower_case", "tokenizer_name_or_path", "query_expansion", "model_kwargs", "model_args",
    "processor_kwargs", "tokenizer_args", "config_kwargs", "config_args",
)  # fmt: skip
_REFUSED = ("do_lower_case", "tokenizer_name_or_path", "query_expansion")
# How to load weights, and how to pad and truncate texts, for which rerankd has its own rules.
_LOADING = ("attn_implementation", "torch_dtype", "dtype", "device_map", "low_cpu_mem_usage")
_TEXT = ("padding", "padding_side", "truncation", "truncation_side", "max_length", "logits_to_keep")
_COMMON = ("return_tensors", "padding_side")
_NOT_OF_TEMPLATE = ("padding", "truncation", "max_length", "return_tensors", "restore_suffix")
_MEDIA = ("image", "audio", "video")


class NotUnderstood(Exception):
    """The files declare something that rerankd does not support; the text is the reason of the Refusal."""


@dataclass(frozen=True, slots=True)
class Transformer:
    """The task; the most tokens of an input (0: not declared); the chat template that formats the input
    (None: the tokenizer joins query and document)."""

    task: str
    max_length: int
    chat: Chat | None


def read(
    said: Mapping[str, Any],
    tasks: Collection[str],
    tokenizer: Mapping[str, Any],
    templates: Mapping[str, str],
) -> Transformer:
    """Read the module. `tasks` are those whose output the other modules can read, `tokenizer` is
    tokenizer_config.json, `templates` are the contents of the .jinja files by path. Raises NotUnderstood."""
    task = said.get("transformer_task", "feature-extraction")
    if task not in tasks:
        raise NotUnderstood(f"its {TRANSFORMER} has the task {task!r:.60}, not {' or '.join(tasks)}")
    settings = mapping(said.get("processing_kwargs"), "processing_kwargs")
    modalities = mapping(said.get("modality_config"), "modality_config")
    _check(said, modalities, task)
    chat = _chat(modalities, settings, tokenizer, templates) if "message" in modalities else None
    return Transformer(task, _max_length(said, settings), chat)


def _check(said: Mapping[str, Any], modalities: Mapping[str, Any], task: str) -> None:
    """Raises NotUnderstood if the module does more than passing texts to its model."""
    method, output = _OUTPUTS[task]
    if said.get("module_output_name", output) != output:
        raise NotUnderstood(f"its {TRANSFORMER} names the output {said['module_output_name']!r:.60}")
    if modalities and "text" not in modalities and "message" not in modalities:
        raise NotUnderstood(f"its {TRANSFORMER} reads no text")
    for name in ("text", "message"):
        if name in modalities:
            how = mapping(modalities[name], "modality_config")
            if how.get("method") != "forward" or how.get("method_output_name") not in (method, [method]):
                raise NotUnderstood(f"its {TRANSFORMER} reads {name} by {dict(how)!r:.100}")
    for key in _REFUSED:
        if said.get(key):
            raise NotUnderstood(f"its {TRANSFORMER} sets {key}, which rerankd does not support")
    only(said, (*_READ, *_HARMLESS), TRANSFORMER)
    for key in ("model_kwargs", "model_args"):
        only(mapping(said.get(key), key), _LOADING, key)
    for key in ("config_kwargs", "config_args"):
        only(mapping(said.get(key), key), (), key)
    for key in ("processor_kwargs", "tokenizer_args"):
        only(mapping(said.get(key), key), ("model_max_length", "padding_side"), key)


def _max_length(said: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """The smallest of the lengths that are set; 0 for none."""
    only(settings, ("text", "common", "chat_template", *_MEDIA), "processing_kwargs")
    text = mapping(settings.get("text"), "processing_kwargs")
    only(text, _TEXT, "processing_kwargs")
    only(mapping(settings.get("common"), "processing_kwargs"), _COMMON, "processing_kwargs")
    found = [
        said.get("max_seq_length"),
        text.get("max_length"),
        mapping(settings.get("chat_template"), "processing_kwargs").get("max_length"),
        *(
            mapping(said.get(key), key).get("model_max_length")
            for key in ("processor_kwargs", "tokenizer_args")
        ),
    ]
    lengths = [one for one in found if one is not None]
    if not all(type(one) is int and one > 0 for one in lengths):
        raise NotUnderstood(f"its {TRANSFORMER} has an invalid length: {lengths!r:.80}")
    return min(lengths, default=0)


def _chat(
    modalities: Mapping[str, Any],
    settings: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    templates: Mapping[str, str],
) -> Chat:
    variables = dict(mapping(settings.get("chat_template"), "processing_kwargs"))
    source = _chosen(variables.pop("chat_template", None), _known(tokenizer, templates))
    if not isinstance(source, str) or not source:
        raise NotUnderstood("a chat template formats its input, but its files contain none")
    for key in _NOT_OF_TEMPLATE:
        variables.pop(key, None)
    for key in ("continue_final_message", "tools", "documents"):
        if variables.pop(key, None):
            raise NotUnderstood(f"its chat template is given {key}, which rerankd does not support")
    special = {
        key: value["content"] if isinstance(value, Mapping) and "content" in value else value
        for key, value in tokenizer.items()
        if key.endswith("_token")
    }
    texts = {key: value for key, value in special.items() if isinstance(value, str)}
    said = mapping(modalities["message"], "modality_config").get("format", "auto")
    return Chat.of(source, {"add_generation_prompt": False, **texts, **variables}, str(said))


def _chosen(wanted: Any, known: Any) -> Any:
    """The template with this name, or the given template itself."""
    if not isinstance(known, Mapping):
        return known if wanted is None else wanted
    return known.get("default") if wanted is None else known.get(str(wanted), wanted)


def _known(tokenizer: Mapping[str, Any], templates: Mapping[str, str]) -> Any:
    """The chat template, or several by name. Files take precedence over tokenizer_config.json."""
    found = {
        name.removeprefix(ADDITIONAL_TEMPLATES).removesuffix(".jinja"): text
        for name, text in templates.items()
        if name.startswith(ADDITIONAL_TEMPLATES)
    }
    if CHAT_TEMPLATE in templates:
        found["default"] = templates[CHAT_TEMPLATE]
    if found:
        return found["default"] if [*found] == ["default"] else found
    said = tokenizer.get("chat_template")
    if not isinstance(said, list):
        return said
    if not all(isinstance(one, Mapping) and {"name", "template"} <= one.keys() for one in said):
        raise NotUnderstood(f"its {TOKENIZER_CONFIG} has chat templates without names")
    return {str(one["name"]): one["template"] for one in said}


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A JSON object, {} for null. Raises NotUnderstood for another value."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise NotUnderstood(f"its {where} must be an object, but is {value!r:.60}")
    return value


def only(said: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises NotUnderstood for an unknown key, unless its value is null or {}."""
    for key, value in said.items():
        if key not in known and value is not None and value != {}:
            raise NotUnderstood(f"its {where} sets {key!r:.60}, which rerankd does not know")
