"""The pages say what the code does: every setting, endpoint, table, room and command, both ways."""

import re
import subprocess

from data_pipeline import cli
from data_pipeline.config import SETTINGS
from data_pipeline.http_server import pages
from data_pipeline.http_server.handler import GEXBridgeRequestHandler
from data_pipeline.repository import schema
from tests.helpers.support import ROOT, eventually, gex_payload

README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_cells(title: str) -> list[str]:
    rows = re.findall(r"(?m)^\| (.*?) \|", section(title))
    return [cell for cell in rows if "`" in cell]


def test_every_setting_stands_in_the_readme_with_its_default_and_reason_and_no_other():
    expected = []
    for s in SETTINGS:
        names = ([f"`{s.name}`"] if s.env else []) + ([f"`{s.option}`"] if s.flag else [])
        default = "" if s.default == "" or s.default is False else f"`{s.default}`{s.unit and ' ' + s.unit}"
        expected.append(f"| {', '.join(names)} | {default} | {s.why} |")
    found = [line for line in section("Settings").splitlines() if line.startswith("| `")]
    assert found == expected


def test_every_endpoint_stands_in_the_readme_and_no_other():
    documented = set(re.findall(r"`POST (/\w+)`", section("Endpoints")))
    assert documented == set(GEXBridgeRequestHandler.ROUTES)
    assert set(re.findall(r"`GET (/\w+)`", section("Endpoints"))) == set(pages.ROUTES)


def test_every_table_stands_in_the_readme_and_no_other():
    documented = {name for cell in first_cells("Tables") for name in re.findall(r"`(\w+)`", cell)}
    made = {
        name for statement in schema.statements() for name in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", statement)
    }
    assert documented == made


def test_every_room_and_top_module_stands_in_the_packages_readme_and_no_other():
    package = ROOT / "data_pipeline"
    named = set(re.findall(r"`(\w+\.py|\w+/)`", (package / "README.md").read_text()))
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert named - {"data_pipeline/"} == modules | rooms


def test_every_command_stands_in_the_readme_and_no_other():
    documented = set(re.findall(r"gex-bridge ([a-z][a-z-]+)", README))
    assert documented == set(cli.COMMANDS)


def test_the_readme_has_at_most_200_lines_and_every_link_leads_somewhere():
    assert len(README.splitlines()) <= 200
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_top_level_has_what_belongs_there_and_nothing_else():
    listed = subprocess.run(["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    names = {name for name in listed.stdout.split() if not name.startswith(".")}
    assert names <= {"data_pipeline", "tests", "data", "setup.cfg", "setup.py", "README.md", "run_server.py"}


def test_no_module_has_more_than_500_lines():
    long = {
        path.name: count
        for path in (ROOT / "data_pipeline").rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_the_readmes_python_reads_a_running_bridge(bridge, monkeypatch):
    monkeypatch.chdir(bridge.data_dir.parent)
    assert bridge.post("/gex", gex_payload()) == 202
    eventually(lambda: bridge.rows("SELECT count(*) FROM gex_bridge_strikes") == [(3,)])
    eventually((bridge.data_dir / "gex/SPX/snapshot.csv").exists)
    block = README.split("    import duckdb, polars\n", 1)[1].split("\n\n", 1)[0]
    found = {}
    exec("import duckdb, polars\n" + "\n".join(line[4:] for line in block.splitlines()), found)
    assert found["strikes"]["strike"].to_list() == found["latest"]["strike"].to_list() == [5300.0, 5305.0, 5310.0]


def test_the_first_line_of_the_log_says_where_it_listens(bridge):
    eventually(lambda: "GEX polling disabled" in bridge.log)
    assert f"INFO Starting GEX bridge on 127.0.0.1:{bridge.port}" in bridge.log.splitlines()[0]
