"""The layout of sentence-transformers 5.4 and newer: how the files beside a checkpoint declare the scoring.

    modules.json                       the modules in the order in which they run: {idx, name, path, type}
    config_sentence_transformers.json  model_type, activation_fn, prompts, default_prompt_name
    sentence_bert_config.json          the Transformer module (see transformer_module.py)
    N_Pooling/config.json, …           the configuration of each other module, beside its model.safetensors

Anything unknown is a Refusal, because it may change the score. Without modules.json, sentence-transformers
reads none of these files, and neither does `read`.

Source: sentence-transformers 6.2 (base/model.py, cross_encoder/model.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rerankd.domain import Refusal
from rerankd.formats import late_interaction, transformer_module
from rerankd.formats.chat_template import Chat
from rerankd.formats.checkpoint_files import (
    ARTIFACT,
    MODULES,
    PROMPTS,
    TOKENIZER_CONFIG,
    TRANSFORMER,
    module_config,
)
from rerankd.formats.late_interaction import MASK, STANFORD, Declared
from rerankd.formats.transformer_module import NotUnderstood, mapping, only

Activation = Literal["identity", "sigmoid"]
Load = Callable[[str], Any]
"""Returns the JSON of a file, by its path in the folder; None if there is no such file."""

_PACKAGE = "sentence_transformers."
_KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "LogitScore", "Normalize", "Dropout", MASK)
_PYLATE_DENSE = "pylate.models.Dense.Dense"
# Modules that need no config.json.
_BARE = ("Transformer", "Normalize", "Dropout", MASK)
_MOST_MODULES = 64
_ACTIVATIONS: Mapping[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid"}
_CROSS_ENCODER = "CrossEncoder"


@dataclass(frozen=True, slots=True)
class Module:
    """An entry of modules.json: the last part of its class name, its folder, the values of its
    config.json."""

    kind: str
    path: str
    type: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the files declare about a cross-encoder or a late-interaction model.

    `modules`: () without modules.json. `activation`: what the library applies to the raw value by default.
    `prompt`: the default text before each query, or the default system message if there is a chat template;
    "" for none. `max_length`: the most tokens of an input; 0 if not declared. `chat`: the chat template that
    formats the input; None if the tokenizer joins query and document. `label_ids`: for a causal model, the
    tokens whose logits are the score: logit[first], minus logit[second] if there are two. () for any other
    model. `interaction`: None unless it is a late-interaction model.
    """

    modules: tuple[Module, ...] = ()
    activation: Activation = "sigmoid"
    prompt: str = ""
    max_length: int = 0
    chat: Chat | None = None
    label_ids: tuple[int, ...] = ()
    interaction: Declared | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(module.kind for module in self.modules)

    @property
    def has_own_head(self) -> bool:
        """Whether modules compute the score from the last hidden states, instead of a head of the class."""
        return len(self.modules) > 1 and not self.is_causal and self.interaction is None

    @property
    def is_causal(self) -> bool:
        """Whether the score is computed from the logits of the next token."""
        return bool(self.label_ids)


def read(
    load: Load, templates: Mapping[str, str], config: Mapping[str, Any], next_step: str
) -> Layout | Refusal | None:
    """The layout of a checkpoint, or why rerankd does not support it (with this next step); None if
    modules.json is damaged. `templates` are the contents of the .jinja files by path, `config` is
    config.json."""
    listed, names = load(MODULES), ""
    try:
        if config.get("architectures") == [STANFORD] and not _is_in_root(listed):
            return _stanford(load)
        if listed is None:
            return Layout(activation=_activation(None, config))
        modules = _modules(listed)
        if modules is None:
            return None
        names = ", ".join(module.kind for module in modules)
        return _layout(modules, load, templates, config)
    except NotUnderstood as reason:
        of = f" ({MODULES} lists {names})" if names else ""
        return Refusal(f"{reason}{of}", next_step)


def _layout(
    modules: tuple[Module, ...], load: Load, templates: Mapping[str, str], config: Mapping[str, Any]
) -> Layout:
    whole, kinds = mapping(load(PROMPTS), PROMPTS), tuple(module.kind for module in modules)
    if late_interaction.is_declared(whole, kinds, [module.type for module in modules]):
        return _interacting(modules, whole, load)
    if config.get("architectures") == [STANFORD]:
        return _stanford(load)
    kind = whole.get("model_type", "SentenceTransformer")
    if kinds == ("Transformer",) and kind == "SentenceTransformer":
        # Saved by an older release. CrossEncoder then uses the head of the class and reads no other file.
        return Layout(modules, _activation(None, config))
    if kind != _CROSS_ENCODER:
        raise NotUnderstood(
            f"its {PROMPTS} declares a {kind!s:.40}; in safetensors rerankd supports a {_CROSS_ENCODER}"
        )
    modules = _checked(modules, load)
    transformer = transformer_module.read(
        mapping(load(TRANSFORMER), TRANSFORMER),
        _tasks(kinds),
        mapping(load(TOKENIZER_CONFIG), TOKENIZER_CONFIG),
        templates,
    )
    return Layout(
        modules,
        _activation(whole.get("activation_fn"), config),
        _prompt(whole),
        transformer.max_length,
        transformer.chat,
        _label_ids(modules) if "LogitScore" in kinds else (),
    )


def _stanford(load: Load) -> Layout:
    """The layout of a late-interaction model without sentence-transformers' files."""
    tokenizer = mapping(load(TOKENIZER_CONFIG), TOKENIZER_CONFIG)
    return Layout(interaction=late_interaction.of_artifact(load(ARTIFACT), tokenizer))


def _interacting(modules: tuple[Module, ...], whole: Mapping[str, Any], load: Load) -> Layout:
    """The layout of a late-interaction model."""
    modules = _checked(modules, load)
    transformer = mapping(load(TRANSFORMER), TRANSFORMER)
    tokenizer = mapping(load(TOKENIZER_CONFIG), TOKENIZER_CONFIG)
    # Its own lengths and its expansion replace what the module does with texts.
    rest = {key: value for key, value in transformer.items() if key != "query_expansion"}
    if "message" in mapping(rest.get("modality_config"), "modality_config"):
        raise NotUnderstood(
            "its input is formatted by a chat template, which late interaction does not support"
        )
    transformer_module.read(rest, ("feature-extraction",), tokenizer, {})
    mask = next((module.config for module in modules if module.kind == MASK), None)
    declared = late_interaction.of_modules(whole, transformer, mask, tokenizer)
    return Layout(modules, interaction=declared)


def _checked(modules: tuple[Module, ...], load: Load) -> tuple[Module, ...]:
    """The modules with their configurations."""
    is_first = [module.kind == "Transformer" for module in modules]
    if not is_first[0] or modules[0].path or any(is_first[1:]):
        raise NotUnderstood("its first module is not a Transformer in the model's own folder")
    return tuple(_configured(module, load) for module in modules)


def _is_in_root(listed: Any) -> bool:
    """Whether modules.json has the Transformer in the model's own folder."""
    first = listed[0] if isinstance(listed, list) and listed else None
    return isinstance(first, Mapping) and first.get("path") == ""


def _modules(listed: Any) -> tuple[Module, ...] | None:
    """The modules; None if modules.json is damaged. Raises NotUnderstood for an unknown module."""
    if not isinstance(listed, list) or not 0 < len(listed) <= _MOST_MODULES:
        return None
    found = []
    for one in listed:
        name, path = (one.get("type"), one.get("path")) if isinstance(one, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(path, str):
            return None
        kind = name.rpartition(".")[2]
        if kind not in _KINDS or not (name.startswith(_PACKAGE) or name == _PYLATE_DENSE):
            known = ", ".join(_KINDS)
            raise NotUnderstood(f"its {MODULES} has the module {name:.100}; rerankd supports {known}")
        found.append(Module(kind, path, name))
    return tuple(found)


def _configured(module: Module, load: Load) -> Module:
    said = load(module_config(module.path)) if module.path else None
    if said is None and module.kind not in _BARE:
        raise NotUnderstood(f"its module {module.path} has no config.json")
    return replace(module, config=mapping(said, module_config(module.path)))


def _tasks(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks of the Transformer whose output the other modules can read."""
    if kinds == ("Transformer",):
        return ("sequence-classification",)
    return ("text-generation", "any-to-any") if "LogitScore" in kinds else ("feature-extraction",)


def _label_ids(modules: tuple[Module, ...]) -> tuple[int, ...]:
    if len(modules) != 2:
        raise NotUnderstood("it has further modules beside LogitScore")
    module = modules[1]
    only(module.config, ("true_token_id", "false_token_id", "module_input_name"), module.path)
    found = [module.config.get("true_token_id"), module.config.get("false_token_id")]
    ids = [one for one in found if one is not None]
    if found[0] is None or not all(type(one) is int and one >= 0 for one in ids):
        raise NotUnderstood(f"its module {module.path} declares no valid token ids: {found!r:.60}")
    if module.config.get("module_input_name", "causal_logits") != "causal_logits":
        raise NotUnderstood(f"its module {module.path} reads {module.config['module_input_name']!r:.60}")
    return tuple(ids)


def _activation(said: Any, config: Mapping[str, Any]) -> Activation:
    """The first activation that is declared. Like the library, ignore classes outside torch."""
    older = config.get("sentence_transformers")
    for found in (
        said,
        older.get("activation_fn") if isinstance(older, Mapping) else None,
        config.get("sbert_ce_default_activation_function"),
    ):
        if isinstance(found, str) and found.startswith("torch."):
            name = found.rpartition(".")[2]
            if name not in _ACTIVATIONS:
                raise NotUnderstood(
                    f"its activation_fn is {found:.80}; rerankd supports Identity and Sigmoid"
                )
            return _ACTIVATIONS[name]
    return "sigmoid"


def _prompt(whole: Mapping[str, Any]) -> str:
    """The text that is put before each query by default."""
    name = whole.get("default_prompt_name")
    if name is None:
        return ""
    prompt = mapping(whole.get("prompts"), "prompts").get(str(name))
    if not isinstance(prompt, str):
        raise NotUnderstood(f"its {PROMPTS} has no prompt {name!r:.60}, its default_prompt_name")
    return prompt
