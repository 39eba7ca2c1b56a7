from pathlib import Path

import pytest

from rerankd import config
from rerankd.config import Settings
from rerankd.errors import ConfigError


def test_flags_beat_environment_beats_file_beats_defaults() -> None:
    text = 'port = 1\nhost = "file"\nalias = ["a"]\nlog_level = "error"'
    environ = {"RERANKD_PORT": "2", "RERANKD_HOST": "env", "HOME": "/root"}
    settings = config.load(text, environ, {"port": 3, "model": None})
    assert (settings.port, settings.host, settings.alias) == (3, "env", ("a",))
    assert settings.log_level == "error"
    assert settings.model == ()


def test_the_names_of_llama_cpp_set_ups_are_honoured() -> None:
    environ = {"LLAMA_PATH": "/opt/llama-server", "LLAMA_RANK_GGUF": "/m/q.gguf", "LLAMA_PORT": "9"}
    settings = config.load("", environ, {})
    assert (settings.llama_path, settings.model) == (Path("/opt/llama-server"), ("/m/q.gguf",))
    assert settings.port == 9
    assert config.load("", {**environ, "RERANKD_PORT": "10"}, {}).port == 10


def test_scoring_is_a_table() -> None:
    text = '[scoring]\ntemplate = "{query} {document}"\nlabels = ["yes", "no"]'
    scoring = config.load(text, {}, {}).scoring
    assert (scoring.template, scoring.labels) == ("{query} {document}", ("yes", "no"))


def test_flags_for_the_engine_are_split_as_a_shell_does() -> None:
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
        ("xyzzy = 1", {}, {}, "Known ones: access_log, admin_api, alias"),
        ("[scoring]\nlabel = 1", {}, {}, "my.toml: scoring.label is not a setting. Did you mean labels?"),
        (
            "[models.a]\ntreads = 1",
            {},
            {},
            "my.toml: models.a.treads is not a setting. Did you mean threads?",
        ),
        ("", {"RERANKD_MODELS": "a"}, {}, "RERANKD_MODELS is not a setting."),
        ("port = 70000", {}, {}, "my.toml: port = 70000 can't be used: input should be less than"),
        ("", {"RERANKD_PORT": "many"}, {}, "RERANKD_PORT: port = 'many' can't be used: input should be a"),
        ('engine_args = ["--host=x"]', {}, {}, "rerankd itself sets --host=x"),
        ("", {}, {"gpu_layers": -2}, "--gpu-layers: gpu_layers = -2 can't be used"),
        ("port = = 1", {}, {}, "my.toml is not valid TOML: Invalid value (at line 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_source(
    text: str, environ: dict[str, str], flags: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(text, environ, flags, "my.toml")
    assert says in caught.value.message


def test_settings_given_by_name_are_checked_too() -> None:
    assert config.override(Settings(port=1), {"model": "m.gguf"}).model_dump(include={"port", "model"}) == {
        "port": 1,
        "model": ("m.gguf",),
    }
    with pytest.raises(ConfigError, match=r"prot is not a setting. Did you mean port"):
        config.override(Settings(), {"prot": 1})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for name, field in Settings.model_fields.items() if name != "scoring")


def test_a_file_is_found_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert config.find({}) is None
    theirs = tmp_path / "config" / "rerankd" / "rerankd.toml"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    assert config.find({}) == theirs
    Path("rerankd.toml").touch()
    assert config.find({}) == Path("rerankd.toml")
    assert config.find({"RERANKD_CONFIG": "other.toml"}) == Path("other.toml")


def test_a_file_that_is_named_and_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        config.from_machine({}, tmp_path / "none.toml")


_SECTIONS = """
threads = 4
idle_unload_s = 60
[scoring]
instruction = "for all"
window = 512
[models.fast]
ref = "builtin:e5"
aliases = ["small"]
threads = 1
preload = false
[models."bge-reranker-v2-m3"]
window = 1024
replicas = 2
"""


def test_a_section_says_what_is_special_about_a_model() -> None:
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
def test_models_named_are_served_else_the_sections_else_the_default(text: str, names: list[str]) -> None:
    assert [wanted.ref for wanted in config.load(text, {}, {}).wanted("the-default")] == names


def test_an_alias_is_the_first_models() -> None:
    first, second = Settings(model=("a.gguf", "b.gguf"), alias=("mine",)).wanted("")
    assert (first.names, second.names) == (("mine",), ())


def test_a_path_with_a_comma_is_one_model() -> None:
    assert config.load("", {"LLAMA_RANK_GGUF": "/m/a,b.gguf"}, {}).model == ("/m/a,b.gguf",)


def test_each_setting_is_fixed_or_live_or_stops_engines_once() -> None:
    assert set(Settings.model_fields) >= config.FIXED | config.LIVE
    assert not config.FIXED & config.LIVE
    assert config.engines_differ(Settings(), Settings(start_timeout_s=1))
    assert not config.engines_differ(Settings(), Settings(port=1, api_key="k", threads=3, model=("a",)))


@pytest.mark.parametrize("key", ["scoring", "models"])
def test_a_section_in_the_environment_is_told_where_it_belongs(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not a setting. Write \[{key}\] into a settings file"):
        config.load("", {f"RERANKD_{key.upper()}": "{}"}, {})
