import sqlite3

from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.migration import export_sqlite, old_file
from data_pipeline.repository import schema
from tests.helpers.old_files import make

cells = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.integers(-(10**6), 10**6).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from(["1_0", "nan", "inf", "0x10", " 7 ", "１２", "1e999"]),
)
rows = st.fixed_dictionaries({name: cells for name in schema.columns("gex_bridge_strikes")})


@given(rows)
def test_every_value_arrives_or_is_reported(row):
    fitted, problems = old_file.fit("gex_bridge_strikes", row)
    reported = {column for column, _, _ in problems}
    if fitted is None:
        assert reported & set(schema.KEYS["gex_bridge_strikes"])
        return
    for column in old_file.columns("gex_bridge_strikes"):
        old, new = row[column.name], fitted[column.name]
        if column.name in reported:
            assert new is None or column.required
        elif old is None:
            assert new is None
        else:
            assert type(new) is {"VARCHAR": str, "BIGINT": int, "DOUBLE": float}[column.kind]
            text = old.decode() if isinstance(old, bytes) else str(old)
            if column.kind == "VARCHAR":
                assert new == text
            else:
                assert float(new) == float(text)


@settings(max_examples=50, deadline=None)
@given(st.lists(rows, max_size=5))
def test_what_is_read_from_sqlite_is_what_was_written(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("old")
    names = schema.columns("gex_bridge_strikes")
    sql = f"CREATE TABLE gex_bridge_strikes ({', '.join(names)})"
    path = make(folder / "old.db", sql, {"gex_bridge_strikes": written})
    with old_file.open_file(path, folder / "copy") as source:
        found = next(source.rows("gex_bridge_strikes", 100, 1 << 20), [])
        read = [dict(zip(names, values)) for _, *values in found]
        table = old_file.as_table("gex_bridge_strikes", found) if found else None
    assert _values(read) == _values(map(_as_read, written))
    if table is not None:
        fitted = [old_file.fit("gex_bridge_strikes", row) for row in read]
        assert _values(table.to_pylist()) == _values(row for row, _ in fitted)
        assert [problems for _, problems in fitted] == [[]] * len(read)


def _values(found) -> list[str]:
    return sorted(repr([row[name] for name in schema.columns("gex_bridge_strikes")]) for row in found)


def _as_read(row: dict) -> dict:
    # An endpoint that nothing tells is the only value that reading makes up.
    return row | {"endpoint": "unknown" if row["endpoint"] is None else row["endpoint"]}


def test_the_exported_schema_has_our_columns():
    con = sqlite3.connect(":memory:")
    for statement in export_sqlite.statements():
        con.execute(statement)
    for table in schema.TABLES:
        assert [r[1] for r in con.execute(f"PRAGMA table_info({table})")] == schema.columns(table)
    con.close()
