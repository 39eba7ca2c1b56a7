import subprocess
import sys
from pathlib import Path

import pytest

from rerankd import config
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.options import PrecisionOptions
from rerankd.backends.table import BACKENDS
from rerankd.config import Settings
from rerankd.errors import ConfigError
from support import ROOT


def test_flags_beat_environment_beats_file_beats_defaults() -> None:
    text = 'port = 1\nhost = "file"\nalias = ["a"]\nlog_level = "error"'
    environ = {"RERANKD_PORT": "2", "RERANKD_HOST": "env", "HOME": "/root"}
    settings = config.load(text, environ, {"port": 3, "model": None})
    assert (settings.port, settings.host, settings.alias) == (3, "env", ("a",))
    assert settings.log_level == "error"
    assert settings.model == ()


def test_environment_variables_of_llama_cpp_setups_are_honoured() -> None:
    environ = {"LLAMA_PATH": "/opt/llama-server", "LLAMA_RANK_GGUF": "/m/q.gguf", "LLAMA_PORT": "9"}
    settings = config.load("", environ, {})
    assert (settings.llama_path, settings.model) == (Path("/opt/llama-server"), ("/m/q.gguf",))
    assert settings.port == 9
    assert config.load("", {**environ, "RERANKD_PORT": "10"}, {}).port == 10


def test_scoring_is_a_table() -> None:
    text = '[scoring]\ntemplate = "{query} {document}"\nlabels = ["yes", "no"]'
    scoring = config.load(text, {}, {}).scoring
    assert (scoring.template, scoring.labels) == ("{query} {document}", ("yes", "no"))


def test_engine_args_are_split_as_a_shell_splits_them() -> None:
    words = config.load("", {"RERANKD_ENGINE_ARGS": "--mlock --override-kv 'a=str:b c'"}, {}).engine_args
    assert words == ("--mlock", "--override-kv", "a=str:b c")
    assert config.load('engine_args = ["--mlock"]', {}, {}).engine_args == ("--mlock",)


def test_lists_in_the_environment_are_split_at_commas() -> None:
    assert config.load("", {"RERANKD_ALIAS": "a, b"}, {}).alias == ("a", "b")


@pytest.mark.parametrize(
    ("text", "environ", "flags", "says"),
    [
        ("prot = 1", {}, {}, "my.toml: prot is not a setting. Did you mean port?"),
        ("", {"RERANKD_API_KEI": "k"}, {}, "RERANKD_API_KEI is not a setting. Did you mean RERANKD_API_KEY?"),
        ("xyzzy = 1", {}, {}, "The settings are: access_log, admin_api, alias"),
        ("[scoring]\nlabel = 1", {}, {}, "my.toml: scoring.label is not a setting. Did you mean labels?"),
        (
            "[models.a]\ntreads = 1",
            {},
            {},
            "my.toml: models.a.treads is not a setting. Did you mean threads?",
        ),
        (
            "[models.a]\nport = 1",
            {},
            {},
            "models.a.port is not a setting: port belongs at the top of the file",
        ),
        ("", {"RERANKD_MODELS": "a"}, {}, "RERANKD_MODELS is not a setting."),
        ("port = 70000", {}, {}, "my.toml: port = 70000 can't be used: it must be less than"),
        ("", {"RERANKD_PORT": "many"}, {}, "RERANKD_PORT: port = 'many' can't be used: it must be a"),
        ('engine_args = ["--host=x"]', {}, {}, "--host=x is set by rerankd"),
        ("", {}, {"gpu_layers": -2}, "--gpu-layers: gpu_layers = -2 can't be used"),
        ("port = true", {}, {}, "my.toml: port = true can't be used: it takes a value, not true or false"),
        ("port = = 1", {}, {}, "my.toml is not valid TOML: Invalid value (at line 1"),
    ],
)
def test_an_error_names_the_source_of_the_setting(
    text: str, environ: dict[str, str], flags: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(text, environ, flags, "my.toml")
    assert says in caught.value.message


def test_overrides_are_validated() -> None:
    assert config.override(Settings(port=1), {"model": "m.gguf"}).model_dump(include={"port", "model"}) == {
        "port": 1,
        "model": ("m.gguf",),
    }
    with pytest.raises(ConfigError, match=r"prot is not a setting. Did you mean port"):
        config.override(Settings(), {"prot": 1})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_has_a_description() -> None:
    assert all(field.description for name, field in Settings.model_fields.items() if name != "scoring")


def test_the_settings_file_is_found_by_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert config.find({}) is None
    of_user = tmp_path / "config" / "rerankd" / "rerankd.toml"
    of_user.parent.mkdir(parents=True)
    of_user.touch()
    assert config.find({}) == of_user
    Path("rerankd.toml").touch()
    assert config.find({}) == Path("rerankd.toml")
    assert config.find({"RERANKD_CONFIG": "other.toml"}) == Path("other.toml")


def test_a_missing_settings_file_that_is_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        config.from_machine({}, tmp_path / "none.toml")


_SECTIONS = """
threads = 4
idle_unload_s = 60
[scoring]
instruction = "for all"
max_length = 512
[models.fast]
ref = "builtin:e5"
aliases = ["small"]
threads = 1
preload = false
[models."bge-reranker-v2-m3"]
max_length = 1024
replicas = 2
"""


def test_a_model_section_overrides_the_settings_of_all_models() -> None:
    fast, bge = config.load(_SECTIONS, {}, {}).wanted("the-default")
    assert (fast.ref, fast.names) == ("builtin:e5", ("fast", "small"))
    assert (fast.threads, fast.preload, fast.replicas, fast.idle_unload_s) == (1, False, 1, 60)
    assert (fast.scoring.max_length, fast.scoring.instruction) == (512, "for all")
    assert (bge.ref, bge.names) == ("bge-reranker-v2-m3", ("bge-reranker-v2-m3",))
    assert (bge.threads, bge.preload, bge.replicas) == (4, True, 2)
    assert (bge.scoring.max_length, bge.scoring.instruction) == (1024, "for all")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["the-default"]),
        (_SECTIONS, ["builtin:e5", "bge-reranker-v2-m3"]),
        ('model = "x.gguf"\n' + _SECTIONS, ["x.gguf"]),
        ('model = ["x.gguf", "fast"]\n' + _SECTIONS, ["x.gguf", "builtin:e5"]),
    ],
)
def test_named_models_are_served_else_all_sections_else_the_default(text: str, names: list[str]) -> None:
    assert [wanted.ref for wanted in config.load(text, {}, {}).wanted("the-default")] == names


def test_aliases_belong_to_the_first_model() -> None:
    first, second = Settings(model=("a.gguf", "b.gguf"), alias=("mine",)).wanted("")
    assert (first.names, second.names) == (("mine",), ())


def test_a_path_with_a_comma_is_one_model() -> None:
    assert config.load("", {"LLAMA_RANK_GGUF": "/m/a,b.gguf"}, {}).model == ("/m/a,b.gguf",)


def test_changed_settings_are_listed_by_what_they_require() -> None:
    other = Settings(port=1, api_key="k", start_timeout_s=1, threads=3)
    assert config.changed(Settings(), other, "restart") == ["port"]
    assert config.changed(Settings(), other, "live") == ["api_key"]
    assert config.changed(Settings(), other, "engine") == ["start_timeout_s", "threads"]


def test_a_changed_per_model_setting_restarts_only_the_engines_it_concerns() -> None:
    assert config.engines_differ(Settings(), Settings(start_timeout_s=1))
    before = config.load("gpu_layers = 1\n[models.a]\ngpu_layers = 2\n[models.b]", {}, {})
    after = config.override(before, {"port": 1, "api_key": "k", "gpu_layers": 3})
    assert not config.engines_differ(before, after)
    assert [one in after.wanted("") for one in before.wanted("")] == [True, False]


def test_changed_request_defaults_restart_no_engine() -> None:
    before = config.load("budget_ms = 1\n[models.a]\nbudget_ms = 3\n[models.b]", {}, {})
    after = config.override(before, {"budget_ms": 2, "truncate_query": True, "truncate_at": "sentence"})
    assert config.changed(before, after, "live") == ["budget_ms", "truncate_at", "truncate_query"]
    assert config.changed(before, after, "engine") == [] and not config.engines_differ(before, after)
    assert [one.of_engines for one in before.wanted("")] == [one.of_engines for one in after.wanted("")]
    assert [(one.budget_ms, one.truncate_query) for one in after.wanted("")] == [(3, True), (2, True)]
    threads = config.override(before, {"threads": 2})
    assert before.wanted("")[0].of_engines != threads.wanted("")[0].of_engines


def test_a_backend_gets_its_options_with_per_model_values_first() -> None:
    text = 'gpu_layers = 1\nengine_args = "--mlock"\n[models.a]\ngpu_layers = 2'
    settings = config.load(text, {}, {})
    assert settings.options(LlamaOptions) == LlamaOptions(gpu_layers=1, engine_args=("--mlock",))
    own = settings.of("a").options(LlamaOptions)
    assert own == LlamaOptions(gpu_layers=2, engine_args=("--mlock",))


def test_no_setting_is_defined_twice() -> None:
    """Except those that backends share, which are inherited from one class."""
    groups = [config.ServingSettings, *(row.Options for row in BACKENDS)]
    names = [
        name for group in groups for name in group.model_fields if name not in PrecisionOptions.model_fields
    ]
    assert len(set(names)) == len(names)


_ONE_MORE = """
from rerankd.backends import table
from rerankd.backends.options import Options, per_model, setting

class Other(Options):
    speed: int = per_model(3, ge=1, le=9, description="how fast it is")
    tool: str = setting("", environment="OTHER_TOOL", description="what it is")

class Row:
    name, title, summary, Options = "other", "Other", "all models", Other

table.BACKENDS.append(Row())
"""


def test_a_new_row_in_the_backend_table_adds_settings_flags_and_docs(tmp_path: Path) -> None:
    code = (
        _ONE_MORE
        + """
import sys
from rerankd import config
sys.path.append("scripts")
import make_docs
text = 'speed = 4\\n[models.a]\\nengine = "other"\\nspeed = 5\\n[models.b]'
settings = config.load(text, {"OTHER_TOOL": "t"}, {"engine": "auto"})
own = [one.options(Other) for one in settings.wanted("")]
assert own == [Other(speed=5, tool="t"), Other(speed=4, tool="t")]
settings = config.load("", {"RERANKD_SPEED": "9", "RERANKD_TOOL": "x"}, {})
assert settings.options(Other) == Other(speed=9, tool="x")
assert "| `speed` | `3` | how fast it is | engine |" in make_docs.settings()
assert "other (all models)" in make_docs.settings()
assert "`--speed`" in make_docs.commands()
"""
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_line_does_not_import_engine_packages() -> None:
    code = "import sys, rerankd.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "httptools", "openvino", "rerankd.state", "rerankd.formats.metadata"}
    assert heavy.isdisjoint(done.stdout.split()) and "rerankd.config" in done.stdout.split()


@pytest.mark.parametrize("key", ["scoring", "upstreams", "models"])
def test_a_section_in_the_environment_is_rejected_with_its_fix(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not a setting. Add a \[{key}\] section to a settings file"):
        config.load("", {f"RERANKD_{key.upper()}": "{}"}, {})
