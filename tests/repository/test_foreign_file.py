import sqlite3

import duckdb
import pytest

from data_pipeline.repository.foreign_file import NotADatabase, refuse_foreign_file


def test_a_duckdb_file_and_no_file_are_welcome(tmp_path):
    path = tmp_path / "gex_history.duckdb"
    refuse_foreign_file(path)
    duckdb.connect(str(path)).close()
    refuse_foreign_file(path)


def test_an_sqlite_file_gets_a_hint_at_migration(tmp_path):
    path = tmp_path / "gex_history.duckdb"
    con = sqlite3.connect(path)
    con.execute("CREATE TABLE a (b)")
    con.close()
    with pytest.raises(NotADatabase, match="SQLite.*gex-bridge migrate"):
        refuse_foreign_file(path)


@pytest.mark.parametrize("content", [b"", b"DUCK", b"text" * 100, b"\0" * 4096])
def test_anything_else_is_refused(tmp_path, content):
    path = tmp_path / "gex_history.duckdb"
    path.write_bytes(content)
    with pytest.raises(NotADatabase, match="not a DuckDB database"):
        refuse_foreign_file(path)
