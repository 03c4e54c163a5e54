"""The tables' column types as Arrow's; imported only where Arrow is used, as it is heavy."""

import pyarrow

from data_pipeline.repository import schema

TYPES = {"VARCHAR": pyarrow.string(), "BIGINT": pyarrow.int64(), "DOUBLE": pyarrow.float64()}


def table_schema(table: str) -> pyarrow.Schema:
    """The columns of a table, in order."""
    return pyarrow.schema([(name, TYPES[declared.split()[0]]) for name, declared in schema.definition(table)])
