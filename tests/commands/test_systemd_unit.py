import pathlib
import re
import shutil
import subprocess

import pytest

from data_pipeline import config
from data_pipeline.commands import systemd_unit
from tests.helpers.support import gex_bridge

installed = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")


@pytest.fixture(params=["plain", 'blank and 100% "odd" $HOME \\ é'])
def settings(request, tmp_path):
    root = tmp_path / request.param
    (root / "data").mkdir(parents=True)
    (root / "run_server.py").touch()
    return config.load(root=root, environ={})


@pytest.fixture
def unit_file(settings, tmp_path) -> pathlib.Path:
    path = tmp_path / "gex-bridge.service"
    path.write_text(systemd_unit.unit(settings, "gex-bridge"))
    return path


@installed
def test_systemd_finds_nothing_wrong_with_the_unit(unit_file):
    done = subprocess.run(["systemd-analyze", "verify", unit_file], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@installed
def test_the_unit_is_as_closed_as_promised(unit_file):
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", unit_file], capture_output=True, text=True)
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)[1]) <= 1.5, done.stdout


def test_the_unit_names_this_installation(settings):
    text = systemd_unit.unit(settings, "trader", python="/opt/python")
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    root = str(settings.root)
    assert lines["WorkingDirectory"] == root.replace("%", "%%")
    script, data = f"{root}/run_server.py", f"{root}/data"
    for name, value, dollars in (("ExecStart", script, True), ("ReadWritePaths", data, False)):
        word = lines[name].removeprefix("/opt/python ")
        if word.startswith('"'):
            word = word[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        assert "%" not in word.replace("%%", "")
        assert word.replace("%%", "%").replace("$$" if dollars else "$", "$") == value
    assert lines["User"] == "trader" and lines["Type"] == "notify" and lines["KillMode"] == "mixed"
    assert int(lines["TimeoutStopSec"]) > settings.stop_timeout


def test_without_a_checkout_the_unit_starts_the_module(tmp_path):
    text = systemd_unit.unit(config.load(root=tmp_path, environ={}), "trader", python="/opt/python")
    assert "ExecStart=/opt/python -P -m data_pipeline serve\n" in text


def test_the_command_prints_the_unit_and_keeps_its_remarks_apart(tmp_path):
    done = gex_bridge("systemd-unit", "--data-dir", tmp_path / "none")
    assert done.returncode == 0 and done.stdout.startswith("# Made by")
    assert f"ReadWritePaths={tmp_path}/none" in done.stdout and str(tmp_path / "none") in done.stderr
