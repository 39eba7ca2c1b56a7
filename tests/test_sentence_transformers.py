"""The files of sentence-transformers' layout: what is read of them, and what is refused by its name."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
from fake_hub import fake_hub
from rerankd.errors import ModelFileError, Unscorable
from rerankd.formats import chat_template, checkpoint_files, model_files
from rerankd.formats.chat_template import Chat, Question
from rerankd.hub.choose_files import RemoteFile
from rerankd.hub.inspect import describe, describe_json
from rerankd.hub.store import Store
from rerankd.recipes import catalog
from rerankd.recipes.causal_layout import CausalRecipe, causal_recipe
from rerankd.recipes.resolve import resolve
from support import GOLDEN, rerankd
from test_pull import NOWHERE, Pulls

Change = Callable[[Path], None]

SAVED = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
LABELS = {"true_token_id": 1, "false_token_id": 0}


@pytest.fixture
def ettin(tmp_path: Path) -> Path:
    return checkpoints.with_modules("ettin", tmp_path / "ettin")


def edited(file: str, **changes: Any) -> Change:
    def apply(model: Path) -> None:
        if not (model / file).exists():
            (model / file).write_text("{}")
        checkpoints.edit(model / file, **changes)

    return apply


def of_module(number: int, **changes: Any) -> Change:
    """An entry of modules.json with other values; without it where there are none."""

    def apply(model: Path) -> None:
        modules = json.loads((model / "modules.json").read_text())
        modules[number : number + 1] = [modules[number] | changes] if changes else []
        (model / "modules.json").write_text(json.dumps(modules))

    return apply


def weights(path: str, **shapes: tuple[int, ...]) -> Change:
    """The tensors of a module, with others of these shapes, a dot written as __."""

    def apply(model: Path) -> None:
        held = checkpoints.read(model / path / "model.safetensors")
        for name, shape in shapes.items():
            size = 4
            for one in shape:
                size *= one
            held[name.replace("__", ".")] = "F32", list(shape), bytes(size)
        checkpoints.write(model / path / "model.safetensors", held)

    return apply


def resolved(model: Path) -> Any:
    return resolve(model_files.read(model), catalog.known())


def test_ettin_is_scored_by_its_modules(ettin: Path) -> None:
    metadata = model_files.read(ettin)
    found = resolve(metadata, catalog.known())
    recipe = found.require()
    assert (recipe.method, recipe.max_length, recipe.normalization.name) == ("cross_encoder", 256, "sigmoid")
    assert recipe.query_prefix == ""
    told = describe(metadata, found)
    assert "modules of sentence-transformers: Transformer, Pooling, Dense, LayerNorm, Dense" in told
    assert "activation_fn is Identity" in told
    assert json.loads(json.dumps(describe_json(metadata, found)))["modules"][1] == "Pooling"


def test_a_sigmoid_needs_no_note(ettin: Path) -> None:
    edited(SAVED, activation_fn="torch.nn.modules.activation.Sigmoid")(ettin)
    assert not any("activation_fn" in note for note in resolved(ettin).notes)


@pytest.mark.parametrize(
    ("file", "changes", "length"),
    [
        (TRANSFORMER, {"max_seq_length": 100}, 100),
        (TRANSFORMER, {"processing_kwargs": {"text": {"max_length": 90}}}, 90),
        (TRANSFORMER, {"processor_kwargs": {"model_max_length": 80}}, 80),
        (TRANSFORMER, {"tokenizer_args": {"model_max_length": 70}, "max_seq_length": 60}, 60),
        (TRANSFORMER, {"max_seq_length": 100_000}, 256),
        (TRANSFORMER, {"query_length": 32, "document_length": 32}, 256),  # of texts that are read apart
    ],
)
def test_lengths(ettin: Path, file: str, changes: dict[str, Any], length: int) -> None:
    edited(file, **changes)(ettin)
    assert resolved(ettin).require().max_length == length


def test_a_default_prompt_stands_before_each_query(ettin: Path) -> None:
    edited(SAVED, prompts={"web": "Search: ", "code": "Code: "}, default_prompt_name="web")(ettin)
    recipe = resolved(ettin).require()
    assert (recipe.query_prefix, recipe.sources["query_prefix"]) == ("Search: ", "file")
    edited(SAVED, default_prompt_name=None)(ettin)
    assert resolved(ettin).require().query_prefix == ""


@pytest.mark.parametrize(
    ("old", "pooling"),
    [({"pooling_mode_cls_token": True}, "cls"), ({"pooling_mode_mean_tokens": True}, "mean"), ({}, "mean")],
)
def test_poolings_of_older_releases(ettin: Path, old: dict[str, bool], pooling: str) -> None:
    unset = {"pooling_mode_max_tokens": False, "word_embedding_dimension": 64}
    edited("1_Pooling/config.json", pooling_mode=None, **unset, **old)(ettin)
    metadata = model_files.read(ettin)
    assert metadata.refusal is None
    assert metadata.classifier_pooling == pooling


REFUSED: list[tuple[str, Change, str]] = [
    ("an embedding model", edited(SAVED, model_type="SentenceTransformer"), "declares a SentenceTransformer"),
    ("no type", edited(SAVED, model_type=None), "declares a SentenceTransformer"),
    ("the repository's own class", of_module(2, type="custom_st.Dense"), "custom_st.Dense"),
    ("another module", of_module(2, type="sentence_transformers.models.WordWeights"), "WordWeights"),
    ("another library's", of_module(2, type="pylate.models.Dense"), "pylate.models.Dense"),
    ("a Transformer below", of_module(0, path="0_Transformer"), "model's own folder"),
    ("no Transformer", of_module(0), "first module is not"),
    ("a head of logits", of_module(1, type="sentence_transformers.models.LogitScore"), "text-generation"),
    ("no Pooling", of_module(1), "comes before a Pooling"),
    ("no last Dense", of_module(4), "not a Dense"),
    ("max pooling", edited("1_Pooling/config.json", pooling_mode="max"), "pooling"),
    ("two poolings", edited("1_Pooling/config.json", pooling_mode=["cls", "mean"]), "pooling"),
    ("an unknown key of Pooling", edited("1_Pooling/config.json", weights=[1]), "sets 'weights'"),
    ("another activation", edited("2_Dense/config.json", activation_function="torch.nn.ELU"), "torch.nn.ELU"),
    ("an own activation", edited("2_Dense/config.json", activation_function="own.GELU"), "own.GELU"),
    ("no activation: Tanh at last", edited("4_Dense/config.json", activation_function=None), "Tanh"),
    ("a sigmoid at last", edited("4_Dense/config.json", activation_function="torch.nn.Sigmoid"), "Sigmoid"),
    ("two scores", edited("4_Dense/config.json", out_features=2), "2 scores"),
    ("another width", edited("2_Dense/config.json", in_features=32), "a width of 64"),
    ("a matrix of another shape", edited("2_Dense/config.json", out_features=32), "with the shape"),
    ("a bias that is missing", edited("2_Dense/config.json", bias=True), "linear.bias"),
    ("a tensor more", weights("3_LayerNorm", norm__scale=(64,)), "norm.scale"),
    ("another input", edited("2_Dense/config.json", module_input_name="tokens"), "tokens"),
    ("an unknown key of Dense", edited("2_Dense/config.json", gate=True), "sets 'gate'"),
    ("no config", lambda model: (model / "2_Dense" / "config.json").unlink(), "2_Dense has no config"),
    ("no weights", lambda model: (model / "2_Dense/model.safetensors").unlink(), "has no model.safetensors"),
    ("another task", edited(TRANSFORMER, transformer_task="fill-mask"), "'fill-mask'"),
    ("another output", edited(TRANSFORMER, module_output_name="scores"), "scores"),
    ("lower case", edited(TRANSFORMER, do_lower_case=True), "do_lower_case"),
    ("another tokenizer", edited(TRANSFORMER, tokenizer_name_or_path="other"), "tokenizer_name_or_path"),
    ("an unknown key", edited(TRANSFORMER, fold_case=True), "'fold_case'"),
    ("no special tokens", edited(
        TRANSFORMER, processing_kwargs={"text": {"add_special_tokens": False}},
    ), "add_special_tokens"),
    ("another configuration", edited(TRANSFORMER, config_kwargs={"num_layers": 2}), "num_layers"),
    ("hidden states", edited(TRANSFORMER, modality_config={"text": {"method": "encode"}}), "encode"),
    ("images alone", edited(TRANSFORMER, modality_config={"image": {"method": "forward"}}), "no text"),
    ("a chat template", edited(
        TRANSFORMER,
        modality_config={"message": {"method": "forward", "method_output_name": "last_hidden_state"}},
    ), "chat template"),
    ("a length that is none", edited(TRANSFORMER, max_seq_length="long"), "'long'"),
    ("a prompt that is not there", edited(SAVED, default_prompt_name="web"), "'web'"),
    ("another activation of the score", edited(SAVED, activation_fn="torch.nn.Tanh"), "torch.nn.Tanh"),
    ("a prompt that pooling leaves out", lambda model: [edited(
        SAVED, prompts={"web": "Search: "}, default_prompt_name="web",
    )(model), edited("1_Pooling/config.json", include_prompt=False)(model)], "1_Pooling"),
    ("a class that is not known", edited("config.json", architectures=["LayoutModel"]), "LayoutModel"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change", "words"), REFUSED, ids=[what for what, _, _ in REFUSED])
def test_what_is_not_understood_is_refused_by_its_name(
    ettin: Path, what: str, change: Change, words: str
) -> None:
    change(ettin)
    with pytest.raises(Unscorable, match=words):
        resolved(ettin).require()


@pytest.mark.parametrize("text", ["{", "[1]", "{}", "[]", '[{"type": 3}]'])
def test_a_damaged_list_of_modules_is_named(ettin: Path, text: str) -> None:
    (ettin / "modules.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"modules\.json"):
        model_files.read(ettin)


def test_a_class_with_its_own_head_is_scored_by_it(tmp_path: Path) -> None:
    """As CrossEncoder saves a model of one module; and as older releases do, which name no type."""
    model = checkpoints.copy("modernbert-head", tmp_path / "model")
    checkpoints.write_modules(model, ["Transformer"])
    assert resolved(model).require().query_prefix == ""
    saved = {"model_type": "CrossEncoder", "prompts": {"q": "Q: "}, "default_prompt_name": "q"}
    (model / SAVED).write_text(json.dumps(saved))
    with pytest.raises(Unscorable, match="'feature-extraction'"):
        resolved(model).require()
    (model / TRANSFORMER).write_text('{"transformer_task": "sequence-classification"}')
    assert resolved(model).require().query_prefix == "Q: "


def test_without_a_list_of_modules_no_other_file_is_read(tmp_path: Path) -> None:
    """As in the library, whose CrossEncoder then takes the head of the class."""
    model = checkpoints.copy("modernbert-head", tmp_path / "model")
    (model / SAVED).write_text(json.dumps({"prompts": {"q": "Q: "}, "default_prompt_name": "q"}))
    assert resolved(model).require().query_prefix == ""
    checkpoints.edit(model / "config.json", sentence_transformers={"activation_fn": "torch.nn.Identity"})
    assert any("activation_fn is Identity" in note for note in resolved(model).notes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_no_file_ends_in_another_error(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = checkpoints.with_modules("ettin", tmp_path_factory.mktemp("any") / "ettin")
    file = data.draw(st.sampled_from([SAVED, TRANSFORMER, "2_Dense/config.json", "1_Pooling/config.json"]))
    values = json.loads((model / file).read_text())
    more = ("processing_kwargs", "max_seq_length", "prompts", "use_residual")
    key = data.draw(st.sampled_from([*values, *more]))
    (model / file).write_text(json.dumps(values | {key: data.draw(json_values)}))
    with contextlib.suppress(ModelFileError, Unscorable):
        resolved(model).require()


# From a hub


@pytest.fixture
def pulls(tmp_path: Path) -> Pulls:
    return Pulls(Store(tmp_path / "home"), [])


def files_of(model: Path) -> dict[str, bytes]:
    found = (path for path in model.rglob("*") if path.is_file() and path.name != "golden.json")
    return {path.relative_to(model).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_modules_are_pulled_with_the_model(kind: str, ettin: Path, pulls: Pulls) -> None:
    files = files_of(ettin)
    others = {"onnx/model.onnx": b"onnx", "2_Dense/pytorch_model.bin": b"pickle", "README.md": b"card"}
    with fake_hub(repos={"cross-encoder/ettin": files | others}) as hub:
        hubs = (hub, "http://127.0.0.1:9") if kind == "hf" else ("http://127.0.0.1:9", hub)
        path = pulls(f"{kind}:cross-encoder/ettin", *hubs)
    assert files_of(path) == files
    assert any("scored as a cross-encoder" in said for said in pulls.said)
    assert [record.name for record in pulls.store.records()] == [f"{kind}:cross-encoder/ettin"]
    pulls.store.index.unlink()
    assert pulls.store.path(pulls.store.records()[0]) == path
    assert resolved(path).require().method == "cross_encoder"


def test_modules_are_checked_before_the_download(ettin: Path, pulls: Pulls) -> None:
    edited("1_Pooling/config.json", pooling_mode="max")(ettin)
    with fake_hub(repos={"cross-encoder/ettin": files_of(ettin)}) as hub:
        with pytest.raises(Unscorable, match="1_Pooling"):
            pulls("hf:cross-encoder/ettin", hub)
        assert not any("model.safetensors" in body for body in hub.bodies)
    assert pulls.store.records() == ()


def test_a_repository_is_inspected_without_a_download(ettin: Path, tmp_path: Path) -> None:
    with fake_hub(repos={"cross-encoder/ettin": files_of(ettin)}) as hub:
        ran = rerankd("inspect", "hf:cross-encoder/ettin", home=tmp_path / "home", HF_ENDPOINT=hub.url)
        as_json = rerankd(
            "inspect", "hf:cross-encoder/ettin", "--json", home=tmp_path / "home", HF_ENDPOINT=hub.url
        )
    assert ran.returncode == 0, ran.stderr
    assert "scored as a cross-encoder" in ran.stdout and "OpenVINO" in ran.stdout
    assert "not on this machine: rerankd pull hf:cross-encoder/ettin" in ran.stdout
    assert json.loads(as_json.stdout)["modules"] == ["Transformer", "Pooling", "Dense", "LayerNorm", "Dense"]
    assert not (tmp_path / "home" / "models").exists() or not [*(tmp_path / "home" / "models").iterdir()]


def test_a_repository_of_gguf_files_is_inspected_by_one_of_them(tmp_path: Path) -> None:
    files = {f"xlmr-{quant}.gguf": (GOLDEN / "xlmr-head.gguf").read_bytes() for quant in ("Q8_0", "F16")}
    with fake_hub(repos={"org/xlmr-GGUF": files}) as hub:
        ran = rerankd("inspect", "hf:org/xlmr-GGUF:F16", home=tmp_path / "home", HF_ENDPOINT=hub.url)
    assert ran.returncode == 0, ran.stderr
    assert "xlmr-F16.gguf" in ran.stdout and "scored as a cross-encoder" in ran.stdout
    assert "llama" in ran.stdout and "rerankd pull hf:org/xlmr-GGUF:F16" in ran.stdout


def test_a_repository_that_is_refused_says_why(ettin: Path, tmp_path: Path) -> None:
    edited("1_Pooling/config.json", pooling_mode="max")(ettin)
    with fake_hub(repos={"cross-encoder/ettin": files_of(ettin)}) as hub:
        ran = rerankd("inspect", "hf:cross-encoder/ettin", home=tmp_path / "home", HF_ENDPOINT=hub.url)
    assert ran.returncode == 3 and "1_Pooling" in ran.stdout
    ran = rerankd("inspect", "--check", "hf:cross-encoder/ettin", home=tmp_path / "home")
    assert ran.returncode != 0 and "rerankd pull" in ran.stderr


# Causal models


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A causal reranker of a class that no backend computes: its files, whose weights nothing reads."""
    model = checkpoints.copy(
        "bert-pairs", tmp_path / "judge", architectures=["OlmoForConditionalGeneration"], model_type="olmo"
    )
    checkpoints.write_modules(model, ["Transformer", "LogitScore"])
    (model / "1_LogitScore").mkdir()
    (model / "1_LogitScore" / "config.json").write_text(
        json.dumps({"true_token_id": 12, "false_token_id": 9})
    )
    said = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (model / SAVED).write_text(json.dumps(said))
    how = {"method": "forward", "method_output_name": "logits"}
    template = {"add_generation_prompt": True}
    (model / TRANSFORMER).write_text(
        json.dumps(
            {
                "transformer_task": "text-generation",
                "modality_config": {"text": how, "message": how | {"format": "flat"}},
                "module_output_name": "causal_logits",
                "processing_kwargs": {"chat_template": template},
            }
        )
    )
    (model / "chat_template.jinja").write_text(golden_templates()[0]["source"])
    return model


def golden_templates() -> list[dict[str, Any]]:
    templates: list[dict[str, Any]] = json.loads((GOLDEN / "modules" / "templates.json").read_text())
    return templates


def test_a_causal_models_recipe_is_read_and_shown(qwen: Path) -> None:
    metadata = model_files.read(qwen)
    found = causal_recipe(metadata)
    assert isinstance(found, CausalRecipe)
    assert (found.label_ids, len(found.labels)) == ((12, 9), 2)
    assert "<Query>: {query}\n<Document>: {document}<|im_end|>" in found.template
    assert found.instruction == "Given a web search query, retrieve relevant passages"
    outcome = resolve(metadata, catalog.known())
    with pytest.raises(Unscorable, match=r"OlmoForConditionalGeneration.*or Qwen3ForCausalLM\. .*GGUF file"):
        outcome.require()
    told = describe(metadata, outcome)
    assert f'labels = ["{found.labels[0]}", "{found.labels[1]}"]' in told
    assert 'method = "causal_lm"' in told
    assert describe_json(metadata, outcome)["causal_recipe"]["label_ids"] == (12, 9)


def test_a_causal_models_repository_is_inspected(qwen: Path, tmp_path: Path) -> None:
    with fake_hub(repos={"Qwen/Qwen3-Reranker": files_of(qwen)}) as hub:
        ran = rerankd("inspect", "hf:Qwen/Qwen3-Reranker", home=tmp_path / "home", HF_ENDPOINT=hub.url)
    assert ran.returncode == 3
    assert "rerankd.toml: below the ref of a GGUF file" in ran.stdout and "labels = [" in ran.stdout


def test_one_label_is_shown_with_its_settings(qwen: Path) -> None:
    checkpoints.edit(qwen / "1_LogitScore" / "config.json", false_token_id=None)
    metadata = model_files.read(qwen)
    found = causal_recipe(metadata)
    assert isinstance(found, CausalRecipe)
    assert found.label_ids == (12,)
    assert f'labels = ["{found.labels[0]}"]' in found.settings
    assert "the logit of the token" in describe(metadata, resolve(metadata, catalog.known()))


def test_without_a_list_of_modules_no_labels_are_assumed(qwen: Path) -> None:
    """sentence-transformers assumes "yes" and "no"."""
    (qwen / "modules.json").unlink()
    metadata = model_files.read(qwen)
    assert causal_recipe(metadata) is None
    with pytest.raises(Unscorable, match="OlmoForConditionalGeneration"):
        resolve(metadata, catalog.known()).require()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"true_token_id": None}, "no valid token ids"),
        ({"true_token_id": -1}, "no valid token ids"),
        ({"false_token_id": "no"}, "no valid token ids"),
        ({"module_input_name": "scores"}, "reads 'scores'"),
        ({"scale": 2.0}, "sets 'scale'"),
    ],
)
def test_labels_that_are_not_understood_are_refused(qwen: Path, changes: dict[str, Any], words: str) -> None:
    checkpoints.edit(qwen / "1_LogitScore" / "config.json", **changes)
    with pytest.raises(Unscorable, match=words):
        resolved(qwen).require()


def test_labels_beyond_the_vocabulary_are_named(qwen: Path) -> None:
    checkpoints.edit(qwen / "1_LogitScore" / "config.json", true_token_id=10**6)
    with pytest.raises(ModelFileError, match="no tokens with the ids"):
        model_files.read(qwen)


def test_a_template_of_several_is_chosen_by_its_name(qwen: Path) -> None:
    (qwen / "additional_chat_templates").mkdir()
    own = "{{ messages[0].content }} / {{ messages[1].content }}"
    (qwen / "additional_chat_templates" / "rank.jinja").write_text(own)
    saved = json.loads((qwen / TRANSFORMER).read_text())
    saved["processing_kwargs"]["chat_template"]["chat_template"] = "rank"
    (qwen / TRANSFORMER).write_text(json.dumps(saved))
    found = causal_recipe(model_files.read(qwen))
    assert isinstance(found, CausalRecipe) and found.template == "{query} / {document}"


def test_a_template_of_the_tokenizers_configuration(qwen: Path) -> None:
    (qwen / "chat_template.jinja").unlink()
    own = "{{ bos_token }}{{ messages[0].content }}{{ sep_token }}{{ messages[1].content }}"
    checkpoints.edit(
        qwen / "tokenizer_config.json", chat_template=own, bos_token="<s>", sep_token={"content": "</s>"}
    )
    found = causal_recipe(model_files.read(qwen))
    assert isinstance(found, CausalRecipe) and found.template == "<s>{query}</s>{document}"
    several = [{"name": "default", "template": own + "!"}, {"name": "tool_use", "template": "no"}]
    checkpoints.edit(qwen / "tokenizer_config.json", chat_template=several)
    found = causal_recipe(model_files.read(qwen))
    assert isinstance(found, CausalRecipe) and found.template == "<s>{query}</s>{document}!"
    checkpoints.edit(qwen / "tokenizer_config.json", chat_template=None)
    with pytest.raises(Unscorable, match="its files contain none"):
        resolved(qwen).require()


# Chat templates


@pytest.mark.parametrize("case", golden_templates(), ids=lambda case: case["name"])
def test_a_template_asks_what_transformers_renders(case: dict[str, Any]) -> None:
    chat = Chat.of(case["source"], case["variables"], "auto")
    assert chat.is_structured == (case["name"] == "structured")
    made = chat_template.question(chat, case["prompt"])
    assert isinstance(made, Question), made
    compared = 0
    for one in case["rendered"]:
        by_default = one["instruction"] in (None, case["prompt"])
        if by_default or "{instruction}" in made.template:
            found = chat_template.filled(made, one["instruction"], one["query"], one["document"])
            assert found == one["text"]
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", ["Qwen3-Reranker-0.6B", "Qwen3-VL-Reranker-2B"])
def test_a_template_as_qwen_publishes_it_becomes_the_catalogs(name: str) -> None:
    """Each text is a variable first, with the instruction's default, and Jinja drops the last newline."""
    entry = catalog.known().find(name)
    assert entry is not None
    source, body = "", entry.template
    for role, default in (("system", f' | default("{entry.instruction}")'), ("query", ""), ("document", "")):
        of_role = f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
        source += f"{{%- set {role}_text = {of_role}{default} -%}}\n"
        placeholder = "{instruction}" if role == "system" else f"{{{role}}}"
        body = body.replace(placeholder, f"{{{{ {role}_text }}}}")
    made = chat_template.question(Chat.of(f"{source}{body}\n", {}, "flat"), "")
    assert made == Question(entry.template, entry.instruction)


QUERY, DOCUMENT = "{{ messages[-2].content }}", "{{ messages[-1].content }}"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (DOCUMENT, "inserts the query 0 times"),
        (QUERY, "inserts the document 0 times"),
        (QUERY + QUERY + DOCUMENT, "inserts the query 2 times"),
        (QUERY + "{{ messages[-1].content | trim }}", "does more than insert texts"),
        (QUERY + "{{ messages[-1].content[:2000] }}", "does more than insert texts"),
        (QUERY + "{{ messages[-1].content | upper }}", "does more than insert texts"),
        (QUERY + "{{ messages[-1].content | replace('<', '&lt;') }}", "does more than insert texts"),
        (QUERY + "{% if messages[-1].content == messages[-2].content %}!{% endif %}" + DOCUMENT, "does more"),
        (QUERY + DOCUMENT + "{query}", "would replace"),
        (QUERY + DOCUMENT + "\x1e", "would replace"),
        (QUERY + DOCUMENT + "{% if", "can't be rendered"),
        (QUERY + DOCUMENT + "{{ raise_exception('no roles') }}", "no roles"),
        (QUERY + DOCUMENT + "{{ strftime_now('%d') }}", "date"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "unsafe|can't be rendered"),
        ("{{ namespace(_a=1) }}", "unsafe"),
        ("{{ dict.mro() }}", "no attribute|unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "0 times|unsafe"),
        ("{{ messages.append(1) }}", "unsafe|can't be rendered"),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError|time or memory"),
        (QUERY + DOCUMENT + "{{ 'a' * 300_000 }}", "more than 200,000 characters"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "time or memory"),
    ],
)
def test_a_template_that_does_more_is_refused(source: str, words: str) -> None:
    found = chat_template.question(Chat.of(source, {}, "flat"), "")
    assert isinstance(found, str)
    assert re.search(words, found), found


@pytest.mark.parametrize(
    "name",
    [
        "additional_chat_templates/../../../evil.jinja",
        "additional_chat_templates/a/b.jinja",
        "additional_chat_templates/..\\evil.jinja",
        "/additional_chat_templates/evil.jinja",
        "1_Dense/../../evil/config.json",
    ],
)
def test_a_file_outside_of_the_folder_is_no_part_of_a_checkpoint(name: str) -> None:
    assert not checkpoint_files.describes(name)


@pytest.mark.parametrize("place", ["../a.json", "a/../../b", "/a", "a//b", "a/b/c", "..", "a\\b", "a\0b", ""])
def test_a_listed_file_outside_of_the_models_folder_is_not_written(place: str) -> None:
    assert not RemoteFile(place, 1).is_inside
    assert RemoteFile("1_Dense/model.safetensors", 1).is_inside and RemoteFile("../m.gguf", 1).is_inside


def test_a_pull_writes_nothing_outside_of_its_folder(ettin: Path, pulls: Pulls, tmp_path: Path) -> None:
    """A listing of ModelScope with such names overwrote another model's files."""
    names = ("!.jinja", "../../../../evil.jinja", "../../../hf--other--m/chat_template.jinja")
    bad = {f"additional_chat_templates/{name}": b"evil" for name in names}
    with fake_hub(repos={"org/ettin": files_of(ettin) | bad}) as hub:
        pulls("ms:org/ettin", NOWHERE, hub)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]
    assert [path.name for path in written] == ["!.jinja"]


def test_files_without_end_that_describe_a_model_are_not_read(ettin: Path, pulls: Pulls) -> None:
    many = {f"additional_chat_templates/{at}.jinja": b"x" for at in range(100)}
    with (
        fake_hub(repos={"org/ettin": files_of(ettin) | many}) as hub,
        pytest.raises(ModelFileError, match="files describe the model"),
    ):
        pulls("hf:org/ettin", hub)


@pytest.mark.parametrize("value", ["true", 1, []])
@pytest.mark.parametrize("flag", ["bias", "use_residual"])
def test_a_flag_that_is_no_boolean_is_refused(ettin: Path, flag: str, value: object) -> None:
    """The library takes any true value for yes: a score was .983 instead of .996."""
    edited("2_Dense/config.json", **{flag: value})(ettin)
    with pytest.raises(Unscorable, match=f"as {flag}, not true or false"):
        resolve(model_files.read(ettin), catalog.known()).require()


@pytest.mark.parametrize("file", ["modules.json", "config.json", "2_Dense/config.json", "tokenizer.json"])
def test_json_that_is_nested_too_deeply_is_damaged(ettin: Path, file: str) -> None:
    (ettin / file).write_text("[" * 200_000)
    with pytest.raises((ModelFileError, Unscorable)):
        resolve(model_files.read(ettin), catalog.known()).require()


def test_a_template_with_the_marks_of_an_optional_part_is_refused() -> None:
    source = "{?instruction}KEEP{/instruction}{{ messages[-2].content }} {{ messages[-1].content }}"
    found = chat_template.question(chat_template.Chat.of(source, {}, "flat"), "")
    assert isinstance(found, str) and "{?instruction}" in found


def test_what_inspect_shows_has_no_control_characters(ettin: Path) -> None:
    """A terminal obeyed them; a lone surrogate ended the command with a traceback."""
    modules = json.loads((ettin / "modules.json").read_text())
    modules[1]["type"] = "\x1b[2J\x07\0\ud800"
    (ettin / "modules.json").write_text(json.dumps(modules))
    metadata = model_files.read(ettin)
    shown = describe(metadata, resolve(metadata, catalog.known()))
    assert r"\x1b[2J\x07\x00\ud800" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
