"""`gex-bridge help`: every page is listed, printed whole, and linked from the README."""

import pytest

from data_pipeline import cli
from data_pipeline.commands import help as pages
from tests.helpers.support import ROOT


def test_without_a_topic_every_page_is_listed_with_its_title(capsys):
    assert cli.main(["help"]) == 0
    listed = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert listed == pages.topics()


@pytest.mark.parametrize("topic", pages.topics())
def test_a_page_is_printed_whole_and_linked_from_the_readme(topic, capsys):
    assert cli.main(["help", topic]) == 0
    page = ROOT / "data_pipeline" / "help" / f"{topic}.md"
    assert capsys.readouterr().out == page.read_text()
    assert f"[{topic}](data_pipeline/help/{topic}.md)" in (ROOT / "README.md").read_text()


def test_an_unknown_topic_is_one_line_that_names_the_known_ones(capsys):
    assert cli.main(["help", "../config"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gex-bridge: no page '../config'") and "troubles" in said and said.count("\n") == 1
