import argparse
import json
import subprocess
import sys

import pytest

from data_pipeline import config
from data_pipeline.config import SETTINGS, ConfigError, Setting
from tests.helpers.support import PATIENCE, ROOT

ENVIRONMENT = [s for s in SETTINGS if s.env]
FLAGS = [s for s in SETTINGS if s.flag]

# kind -> (text, value), neither a default nor out of any row's bounds
SAMPLES = {
    "text": ("a text", "a text"),
    "int": ("7", 7),
    "number": ("7.5", 7.5),
    "bool": ("yes", True),
    "path": ("/some/where", "/some/where"),
    "url": ("http://127.0.0.1:9/x/", "http://127.0.0.1:9/x"),
    "list": ("a, b,,c", ("a", "b", "c")),
    "symbols": ("SPX, ES_SPX,,BRK.B,SPX", ("SPX", "ES_SPX", "BRK.B")),
    "categories": ("full, zero", ("full", "zero")),
    "hours": ("rth", "rth"),
    "values": ("own", "own"),
    "level": ("WARNING", "WARNING"),
}
WRONG = {
    "values": ["mine"],
    "level": ["LOUD", "10", "info"],
    "hours": ["night", "RTH"],
    "categories": ["zero,two", ","],
    "symbols": ["spx", "SPX,../x", ","],
    "int": ["x", "1.5", "1e3", "0x10", " "],
    "number": ["x", "nan", "inf", "-inf", "1,5"],
    "bool": ["maybe", "2", "yes!"],
    "url": [
        "localhost:1",
        "ftp://x",
        "http://",
        "//x",
        "http://x?q=1",
        "http://x#f",
        "http://x:99999",
        "http://x:port",
        "http://[",
    ],
}


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    config.add_flags(parser)
    return parser.parse_args(argv)


def load(tmp_path, *argv: str, **environ: str) -> config.Settings:
    return config.load(parsed(*argv), tmp_path, environ)


def value_of(settings, setting: Setting):
    value = getattr(settings, setting.attribute)
    return str(value) if setting.kind == "path" else value


def needed(setting: Setting) -> dict[str, str]:
    return {"GEXBOT_API_KEY": "k"} if setting.name == "GEX_STATUS_SYMBOLS" else {}


def loaded_by_a_process(root, *argv: str, **environ: str) -> dict:
    """What a real process makes of the .env in `root`, its environment and its flags."""
    script = """
import json, pathlib, sys
from tests.test_config import parsed
from data_pipeline import config
settings = config.load(parsed(*sys.argv[2:]), pathlib.Path(sys.argv[1]))
print(json.dumps({s.name: getattr(settings, s.attribute) for s in config.SETTINGS}, default=str))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), *argv],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return json.loads(done.stdout)


def test_every_default_is_a_value_of_its_kind(tmp_path):
    settings = load(tmp_path)
    for s in SETTINGS:
        words = tuple(str(s.default).split(",")) if s.default else ()
        expected = {"list": words, "symbols": words, "categories": words, "path": str(tmp_path / "data")}
        assert value_of(settings, s) == expected.get(s.kind, s.default), s.name
    assert settings.database == tmp_path / "data/raw/gex/gex_history.duckdb"
    assert (settings.host, settings.port, settings.debug, settings.poll_interval) == ("127.0.0.1", 8877, False, 60)


@pytest.mark.parametrize("setting", ENVIRONMENT, ids=lambda s: s.name)
def test_every_setting_comes_from_its_environment_variable(tmp_path, setting):
    text, value = SAMPLES[setting.kind]
    assert value_of(load(tmp_path, **{setting.name: text, **needed(setting)}), setting) == value
    empty = load(tmp_path, **{setting.name: ""})
    assert value_of(empty, setting) == value_of(load(tmp_path), setting), "empty counts as absent"


@pytest.mark.parametrize("setting", FLAGS, ids=lambda s: s.option)
def test_every_flag_wins_over_the_environment(tmp_path, setting):
    text, value = SAMPLES[setting.kind]
    argv = [setting.option] if setting.kind == "bool" else [setting.option, text]
    other = {"path": "/else", "bool": "0"}.get(setting.kind, "1")
    assert value_of(load(tmp_path, *argv, **{setting.name: other}), setting) == value


def test_what_has_no_environment_variable_does_not_listen_to_one(tmp_path):
    assert load(tmp_path, HOST="0.0.0.0", PORT="1", host="0.0.0.0", port="1").port == 8877


def test_every_setting_comes_from_the_env_file(tmp_path):
    (tmp_path / ".env").write_text("".join(f"{s.name}='{SAMPLES[s.kind][0]}'\n" for s in ENVIRONMENT))
    loaded = loaded_by_a_process(tmp_path)
    for s in ENVIRONMENT:
        value = SAMPLES[s.kind][1]
        assert loaded[s.name] == (list(value) if isinstance(value, tuple) else value), s.name


def test_flags_win_over_the_environment_and_that_over_the_env_file(tmp_path):
    (tmp_path / ".env").write_text(
        "DATA_DIR=from-file\nLOG_JSON=1\nHTTP_WORKERS=3\nSTOP_TIMEOUT=7\nDASHBOARD_URL=http://file\n"
    )
    loaded = loaded_by_a_process(
        tmp_path, "--data-dir", "from-flag", DATA_DIR="from-environment", HTTP_WORKERS="5", STOP_TIMEOUT=""
    )
    assert loaded["DATA_DIR"] == str(tmp_path / "from-flag")
    assert loaded["HTTP_WORKERS"] == 5
    assert loaded["DASHBOARD_URL"] == "http://file"
    assert loaded["STOP_TIMEOUT"] == 4, "an empty variable switches off what the file says"
    loaded = loaded_by_a_process(tmp_path, DATA_DIR="from-environment")
    assert loaded["DATA_DIR"] == str(tmp_path / "from-environment")
    assert loaded_by_a_process(tmp_path)["DATA_DIR"] == str(tmp_path / "from-file")


def test_the_discord_token_has_a_second_place(tmp_path):
    (tmp_path / "discord-bot").mkdir()
    (tmp_path / "discord-bot" / ".env").write_text("DISCORD_BOT_TOKEN=second\n")
    assert load(tmp_path).discord_bot_token == "second"
    assert load(tmp_path, DISCORD_BOT_TOKEN="first").discord_bot_token == "first"


def refused(name, tmp_path, *argv, **environ):
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, *argv, **environ)
    assert str(raised.value).startswith(f"{name} must be ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("setting", [s for s in ENVIRONMENT if s.kind in WRONG], ids=lambda s: s.name)
def test_a_wrong_value_in_the_environment_is_one_line_that_names_the_variable(tmp_path, setting):
    for text in WRONG[setting.kind]:
        refused(setting.name, tmp_path, **{setting.name: text})


@pytest.mark.parametrize("setting", [s for s in FLAGS if s.kind in ("int", "number")], ids=lambda s: s.option)
def test_a_wrong_value_of_a_flag_is_one_line_that_names_the_flag(tmp_path, setting):
    for text in WRONG[setting.kind] + ["", " "]:
        refused(setting.option, tmp_path, f"{setting.option}={text}")


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.low is not None], ids=lambda s: s.name)
def test_bounds_are_taken_and_what_is_beyond_is_refused_with_them(tmp_path, setting):
    def given(value):
        return (
            load(tmp_path, f"{setting.option}={value}")
            if setting.flag
            else load(tmp_path, **{setting.name: str(value)})
        )

    assert value_of(given(setting.low), setting) == setting.low
    with pytest.raises(ConfigError, match=f"at least {setting.low:g}"):
        given(setting.low - 1)
    if setting.high is not None:
        assert value_of(given(setting.high), setting) == setting.high
        with pytest.raises(ConfigError, match=f"at most {setting.high:g}"):
            given(setting.high + 1)


def test_a_secret_is_never_shown():
    setting = Setting("SECRET", "int", 1, "", "", secret=True)
    with pytest.raises(ConfigError) as raised:
        config._value(setting, "hush", "SECRET")
    assert "hush" not in str(raised.value)
    assert {s.name for s in SETTINGS if s.secret} == {"API_TOKEN", "GEXBOT_API_KEY", "DISCORD_BOT_TOKEN"}


@pytest.mark.parametrize(
    "name, meant",
    [("DATADIR", "DATA_DIR"), ("GEXBOT_APIKEY", "GEXBOT_API_KEY"), ("DISCORD_BOT_TOKENS", "DISCORD_BOT_TOKEN")],
)
def test_a_misspelt_name_in_the_env_file_is_refused_without_its_value(tmp_path, name, meant):
    (tmp_path / ".env").write_text(f"{name}=hush\n")
    with pytest.raises(ConfigError) as raised:
        load(tmp_path)
    assert str(raised.value) == f".env: unknown setting {name!r}; did you mean {meant}?"


def test_names_of_other_programs_in_the_env_file_are_none_of_ours(tmp_path):
    (tmp_path / ".env").write_text("POSTGRES_URL=x\nDATA_DIRECTORY_OF_ANOTHER=y\nexport HOME=z\n# DATADIR=1\n")
    assert load(tmp_path).port == 8877


def test_status_files_need_the_key(tmp_path):
    with pytest.raises(ConfigError, match="GEX_STATUS_SYMBOLS needs GEXBOT_API_KEY"):
        load(tmp_path, GEX_STATUS_SYMBOLS="SPX")


def test_the_data_folder_is_relative_to_the_project_root_and_may_begin_with_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(load(tmp_path, DATA_DIR="here/../there").data_dir) == str(tmp_path / "there")
    assert str(load(tmp_path, DATA_DIR="~/gex").data_dir) == "/home/someone/gex"
    assert config.project_root() == ROOT


def test_help_has_every_setting_and_no_flag_that_is_none():
    shown = config.environment_help()
    for s in ENVIRONMENT:
        assert f"  {s.name} " in shown and s.why in shown
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    assert {a.option_strings[0] for a in parser._actions} == {"-h"} | {s.option for s in FLAGS}
    only = argparse.ArgumentParser()
    config.add_flags(only, only=("DATA_DIR",))
    assert {a.option_strings[0] for a in only._actions} == {"-h", "--data-dir"}
    with pytest.raises(SystemExit):
        only.parse_args(["--port", "1"])


@pytest.mark.parametrize("name", ["DISCORD_CHANNEL_ID_2", "MAX_BODY_BYTES_OF_PROXY"])
def test_a_setting_with_something_behind_it_is_another_programs_and_costs_one_line(tmp_path, caplog, name):
    (tmp_path / ".env").write_text(f"{name}=hush\n")
    assert load(tmp_path).port == 8877
    if name == "DISCORD_CHANNEL_ID_2":
        (line,) = caplog.messages
        assert name in line and "DISCORD_CHANNEL_ID is one" in line and "hush" not in line


@pytest.mark.parametrize("content", ["PORT=1\n".encode("utf-16"), "DATA_DIR=x\n".encode("utf-16-le"), b"A=\xff\xfe"])
def test_an_env_file_that_is_no_utf_8_text_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(ConfigError, match=r"\.env is not UTF-8 text; save it as UTF-8$"):
        load(tmp_path)


def test_an_env_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / ".env").write_text("HTTP_WORKERS=5\n", encoding="utf-8-sig")
    assert loaded_by_a_process(tmp_path)["HTTP_WORKERS"] == 5


def test_a_data_folder_with_a_question_mark_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="DATA_DIR must not hold a question mark"):
        load(tmp_path, DATA_DIR="what?")


def test_settings_travel_as_one_line_and_arrive_whole(tmp_path):
    settings = load(tmp_path, GEX_STATUS_SYMBOLS="SPX,NDX", GEXBOT_API_KEY="k", HISTORY_DOWNLOAD_COMMAND="a\nb {id}")
    line = settings.to_json()
    assert "\n" not in line and config.Settings.from_json(line) == settings


def test_debug_wins_over_the_level_of_the_log(tmp_path):
    assert load(tmp_path, LOG_LEVEL="ERROR").level == "ERROR"
    assert load(tmp_path, "--debug", LOG_LEVEL="ERROR").level == "DEBUG"
