"""The command line as a whole."""

import importlib

import pytest

from data_pipeline import cli
from tests.helpers.support import gex_bridge


def test_the_help_lists_every_subcommand_with_its_line():
    code, out, error = gex_bridge("--help")
    words = " ".join(out.split())
    assert (code, error) == (0, "")
    for name, module in cli.COMMANDS.items():
        help_line = importlib.import_module(f"data_pipeline.commands.{module}").HELP
        assert help_line and "\n" not in help_line
        assert f"{name} {help_line}" in words


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_has_its_own_help(name):
    code, out, error = gex_bridge(name, "--help")
    assert (code, error) == (0, "")
    assert out.startswith(f"usage: gex-bridge {name} ") and "environment (also read from .env" in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_flag_that_is_none_is_a_usage_error(name):
    code, out, error = gex_bridge(name, "--no-such-flag")
    assert (code, out) == (2, "") and "usage:" in error


def test_no_subcommand_and_an_unknown_one_are_usage_errors():
    assert gex_bridge()[0] == 2
    code, _, error = gex_bridge("statsu")
    assert code == 2 and "status" in error


@pytest.mark.parametrize("name", ["status", "check", "doctor"])
def test_a_wrong_setting_is_one_line_and_code_2(name, tmp_path):
    code, out, error = gex_bridge(name, "--data-dir", tmp_path, LOAD_INTERVAL="soon")
    assert (code, out) == (2, "")
    assert "LOAD_INTERVAL" in error and len(error.splitlines()) == 1
