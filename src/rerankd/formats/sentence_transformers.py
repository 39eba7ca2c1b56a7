"""The files that sentence-transformers 5.4 and newer write beside a checkpoint -> how the model is scored.

    modules.json                       the modules that run, in order: {idx, name, path, type}
    config_sentence_transformers.json  model_type, activation_fn, prompts, default_prompt_name
    sentence_bert_config.json          the Transformer module (see transformer_module.py)
    N_Pooling/config.json, …           the configuration of each other module, its model.safetensors beside it

What is not understood is a Refusal, for it may change the score. Without modules.json sentence-transformers
reads config.json alone, and so does `read`.

Source: sentence-transformers 6.2 (base/model.py, cross_encoder/model.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rerankd.domain import Refusal
from rerankd.formats import transformer_module
from rerankd.formats.chat_template import Chat
from rerankd.formats.checkpoint_files import (
    MODULES,
    PROMPTS,
    TOKENIZER_CONFIG,
    TRANSFORMER,
    module_config,
)
from rerankd.formats.transformer_module import NotUnderstood, mapping, only

Activation = Literal["identity", "sigmoid"]
Load = Callable[[str], Any]
"""A file's JSON by the file's path in the folder; None where there is no such file."""

_PACKAGE = "sentence_transformers."
_KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "LogitScore", "Normalize", "Dropout")
# Those that can do without a config.json.
_BARE = ("Transformer", "Normalize", "Dropout")
_MOST_MODULES = 64
_ACTIVATIONS: Mapping[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid"}
_CROSS_ENCODER = "CrossEncoder"


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json: the last part of its class, its folder, and what its config.json says."""

    kind: str
    path: str
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the files say of a cross-encoder.

    `modules` is () where there is no modules.json. `activation` is what the publisher's library puts on the
    raw value. `label_ids` are the tokens whose logits make the score of a causal model: the first's, less the
    second's where there are two. `prompt` stands before each query, or is the system message where a chat
    template makes the input (`chat`; None where the tokenizer joins query and document). `max_length` bounds
    an input's tokens, 0 where the files do not say.
    """

    modules: tuple[Module, ...] = ()
    activation: Activation = "sigmoid"
    prompt: str = ""
    max_length: int = 0
    chat: Chat | None = None
    label_ids: tuple[int, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(module.kind for module in self.modules)

    @property
    def has_own_head(self) -> bool:
        """Whether modules make the score of the last hidden states, and not a head of the class."""
        return len(self.modules) > 1 and not self.is_causal

    @property
    def is_causal(self) -> bool:
        """Whether the score is made of the logits of the next token."""
        return bool(self.label_ids)


def read(
    load: Load, templates: Mapping[str, str], config: Mapping[str, Any], next_step: str
) -> Layout | Refusal | None:
    """The layout of a checkpoint, or why it is not understood, with this next step; None where modules.json
    is damaged. `templates` are the chat templates by the paths of their files, `config` is config.json."""
    said, names = load(MODULES), ""
    try:
        if said is None:
            return Layout(activation=_activation(None, config))
        modules = _modules(said)
        names = ", ".join(module.kind for module in modules)
        return _layout(modules, load, templates, config)
    except NotUnderstood as reason:
        of = f" ({MODULES} says that it is {names})" if names else ""
        return Refusal(f"{reason}{of}", next_step)
    except (TypeError, KeyError):
        return None


def _layout(
    modules: tuple[Module, ...], load: Load, templates: Mapping[str, str], config: Mapping[str, Any]
) -> Layout:
    whole, kinds = mapping(load(PROMPTS), PROMPTS), tuple(module.kind for module in modules)
    kind = whole.get("model_type", "SentenceTransformer")
    if kinds == ("Transformer",) and kind == "SentenceTransformer":
        # From older releases. CrossEncoder then takes the head of the class, and reads no other of the files.
        return Layout(modules, _activation(None, config))
    if kind != _CROSS_ENCODER:
        raise NotUnderstood(
            f"it is a {kind!s:.40}, and of this format rerankd serves models that their {PROMPTS} calls a "
            f"{_CROSS_ENCODER}"
        )
    if modules[0].kind != "Transformer" or modules[0].path or "Transformer" in kinds[1:]:
        raise NotUnderstood("its Transformer is not its first module, or not in the model's own folder")
    modules = tuple(_configured(module, load) for module in modules)
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


def _modules(said: Any) -> tuple[Module, ...]:
    """Raises TypeError or KeyError for something else than a list of modules, NotUnderstood for one that is
    not known."""
    if not isinstance(said, list) or not 0 < len(said) <= _MOST_MODULES:
        raise TypeError
    found = []
    for one in said:
        name = one["type"]
        if not isinstance(name, str) or not isinstance(one["path"], str):
            raise TypeError
        kind = name.rpartition(".")[2]
        if not name.startswith(_PACKAGE) or kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise NotUnderstood(f"its {MODULES} has the module {name:.100}, and rerankd knows {known}")
        found.append(Module(kind, one["path"]))
    return tuple(found)


def _configured(module: Module, load: Load) -> Module:
    said = load(module_config(module.path)) if module.path else None
    if said is None and module.kind not in _BARE:
        raise NotUnderstood(f"its module {module.path} has no config.json")
    return Module(module.kind, module.path, mapping(said, module_config(module.path)))


def _tasks(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks of the Transformer that give the other modules what they read."""
    if kinds == ("Transformer",):
        return ("sequence-classification",)
    return ("text-generation", "any-to-any") if "LogitScore" in kinds else ("feature-extraction",)


def _label_ids(modules: tuple[Module, ...]) -> tuple[int, ...]:
    if len(modules) != 2:
        raise NotUnderstood("it does more with its logits than a LogitScore does")
    module = modules[1]
    only(module.config, ("true_token_id", "false_token_id", "module_input_name"), module.path)
    found = [module.config.get("true_token_id"), module.config.get("false_token_id")]
    ids = [one for one in found if one is not None]
    if found[0] is None or not all(type(one) is int and one >= 0 for one in ids):
        raise NotUnderstood(f"its module {module.path} does not name the tokens of its score: {found!r:.60}")
    if module.config.get("module_input_name", "causal_logits") != "causal_logits":
        raise NotUnderstood(f"its module {module.path} reads {module.config['module_input_name']!r:.60}")
    return tuple(ids)


def _activation(said: Any, config: Mapping[str, Any]) -> Activation:
    """What the library puts on the raw value: the first that is said, of torch's own classes only."""
    older = config.get("sentence_transformers")
    for found in (
        said,
        older.get("activation_fn") if isinstance(older, Mapping) else None,
        config.get("sbert_ce_default_activation_function"),
    ):
        if isinstance(found, str) and found.startswith("torch."):
            name = found.rpartition(".")[2]
            if name not in _ACTIVATIONS:
                raise NotUnderstood(f"its activation is {found:.80}, and rerankd knows Identity and Sigmoid")
            return _ACTIVATIONS[name]
    return "sigmoid"


def _prompt(whole: Mapping[str, Any]) -> str:
    """What is put before each query unless the caller says otherwise."""
    name = whole.get("default_prompt_name")
    if name is None:
        return ""
    prompt = mapping(whole.get("prompts"), "prompts").get(str(name))
    if not isinstance(prompt, str):
        raise NotUnderstood(f"its {PROMPTS} has no prompt called {name!r:.60}, its default_prompt_name")
    return prompt
