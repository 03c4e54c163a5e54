"""`python -m tests.benchmarks.spark_lake DATA_DIR`: the lake read by Spark, if pyspark is there.

Prints the rows of each kind and the time of one aggregate, beside DuckDB's
answer to the same question; ends with 1 where they differ.
"""

import importlib.util
import pathlib
import sys
import time

AGGREGATE = (
    "SELECT ticker, count(*) AS n, round(sum(gamma_now), 3) AS gamma, min(ts) AS first"
    " FROM strikes GROUP BY ticker ORDER BY ticker"
)


def session():
    """A Spark session that reads the lake as it is meant: UTC, and a ticker of digits is text."""
    from pyspark.sql import SparkSession

    return (
        SparkSession.builder.master("local[*]")
        .appName("gex-lake")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.sources.partitionColumnTypeInference.enabled", "false")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )


def by_spark(lake: pathlib.Path) -> list[tuple]:
    spark = session()
    try:
        for kind in ("snapshots", "strikes"):
            spark.read.parquet(str(lake / kind)).createOrReplaceTempView(kind)
            print(f"{kind}: {spark.table(kind).count():,} rows")
        begun = time.perf_counter()
        rows = [(r["ticker"], r["n"], r["gamma"]) for r in spark.sql(AGGREGATE).collect()]
        print(f"Spark:  {time.perf_counter() - begun:.2f} s")
        return rows
    finally:
        spark.stop()


def by_duckdb(lake: pathlib.Path) -> list[tuple]:
    import duckdb

    with duckdb.connect() as con:
        con.execute(
            f"CREATE VIEW strikes AS FROM read_parquet('{lake}/strikes/*/*/*/*.parquet', hive_partitioning = true,"
            " hive_types = {'ticker': VARCHAR, 'endpoint': VARCHAR, 'date': DATE})"
        )
        begun = time.perf_counter()
        rows = con.sql(f"SELECT ticker, n, gamma FROM ({AGGREGATE})").fetchall()
        print(f"DuckDB: {time.perf_counter() - begun:.2f} s")
        return rows


def main(argv: list[str]) -> int:
    if importlib.util.find_spec("pyspark") is None:
        print("pyspark is not installed; nothing was run")
        return 0
    lake = pathlib.Path(argv[0]).absolute() / "lake"
    ours, theirs = by_duckdb(lake), by_spark(lake)
    same = len(ours) == len(theirs) and all(a[:2] == b[:2] and abs(a[2] - b[2]) < 0.01 for a, b in zip(ours, theirs))
    print("the same answer" if same else f"different answers: {ours} and {theirs}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
