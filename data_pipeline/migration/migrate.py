"""Moving over: the original's SQLite file into our tables, proven, while the server runs.

One lane: rows are read in batches, and each batch goes into its table in a
session and a transaction of its own, with pauses in which the server and
readers get in.  A transaction proves its own rows before it commits: rows and
checksums of what was read equal those of what the table then has.  One
transaction a table is no faster, and for a million strikes it held the
database for 2.8 s at a time instead of 0.4 s, with 1.5 GB of memory instead
of 0.3 GB.

A batch that is in already changes nothing, so after an interruption the same
command is simply run again.  What does not fit our tables, and what lost
against another row, is in the report: JSON lines, each a row or a value with
the reason.
"""

import contextlib
import fcntl
import hashlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from tqdm import tqdm

from data_pipeline import BridgeError
from data_pipeline.files import atomic
from data_pipeline.migration import merge, old_file
from data_pipeline.migration.merge import Sums
from data_pipeline.migration.old_file import OldFile
from data_pipeline.migration.report import Report
from data_pipeline.repository import arrow, database, foreign_file, schema

# A session takes about half a second: strikes are small and many, webhooks may have a megabyte each.
BATCH_ROWS = 65_536
BATCH_BYTES = 32 << 20
# s between two sessions.  Long enough for the server, which looks every 20 ms, to get in.
PAUSE = 0.06

Use = Callable[[str, pa.Table], None]  # what is done with a batch of a table


class MigrationError(BridgeError):
    """The move could not be done; the text is for the operator."""


@dataclass
class TableResult:
    """Counts of one table.  source and moved are proven equal but for what gave way."""

    rows: int = 0
    unfit_rows: int = 0
    unfit_values: int = 0
    new: int = 0
    same: int = 0
    lost: int = 0
    replaced: int = 0
    source: Sums = field(default_factory=Sums)
    gave_way: Sums = field(default_factory=Sums)
    moved: Sums = field(default_factory=Sums)

    @property
    def is_proven(self) -> bool:
        """Whether rows and checksums are the same on both sides."""
        return not self.source.differs_from(self.gave_way + self.moved)


class Migration:
    """One move of the file `old` into the DuckDB file `target`.

    merge: the target may have rows already.  prefer: which of two different
    rows with one key is kept, `old` (the SQLite file's) or `new` (ours).
    report: where the report goes, by default beside the database; wait:
    seconds to try for the database while others have it; show: a progress
    bar on standard error, None for where that is a terminal.
    """

    def __init__(
        self,
        old: pathlib.Path,
        target: pathlib.Path,
        merge: bool = False,
        prefer: str = "new",
        report: pathlib.Path | None = None,
        wait: float = 60.0,
        show: bool | None = None,
    ):
        self.old, self.target = pathlib.Path(old), pathlib.Path(target)
        self.merge, self.prefer, self.wait, self.show = merge, prefer, wait, show
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.report = Report(pathlib.Path(report) if report else self.target.parent / f"migrate-{stamp}.jsonl")
        self.results: dict[str, TableResult] = {}
        self.not_ours: list[str] = []
        self._database = database.Database(self.target)

    def look(self) -> dict[str, TableResult]:
        """A dry run: read everything, compare with what the target has, write only the report."""
        return self._go(self._compare)

    def run(self) -> dict[str, TableResult]:
        """Do it.  Raises MigrationError, OldFileError, DatabaseBusy, NotADatabase; what is in then stays."""
        atomic.make_folder(self.target.parent)
        with _only_one(self.target.with_suffix(".migrating")):
            return self._go(self._move)

    def _go(self, use: Use) -> dict[str, TableResult]:
        foreign_file.refuse_foreign_file(self.target)
        with (
            contextlib.closing(self.report),
            tempfile.TemporaryDirectory(prefix="gex-bridge-") as scratch,
            old_file.open_file(self.old, pathlib.Path(scratch)) as source,
        ):
            self.not_ours = source.others
            if use == self._move:
                self._begin(source)
            for table in source.tables:
                self._table(source, table, use)
            if use == self._move:
                self._end()
        return self.results

    @property
    def _unfinished(self) -> str:
        """Stands among the journals while this file is being moved: run again, the move goes on without --merge."""
        return f"migrate:{hashlib.sha256(str(self.old.resolve()).encode('utf-8', 'surrogateescape')).hexdigest()}"

    def _begin(self, source: OldFile) -> None:
        with self._database.session(wait=self.wait) as con:
            rows = {t: con.execute(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in schema.TABLES}
            if any(rows.values()) and not self.merge and not database.position(con, self._unfinished):
                used = ", ".join(f"{t} {n}" for t, n in rows.items() if n)
                raise MigrationError(
                    f"{self.target} is in use (rows: {used}): add --merge to put the old rows beside them"
                )
            database.note_position(con, self._unfinished, 1)
            # Before the first row: from now on nobody gives out an id that is about to come in.
            for table in schema.TABLES_WITH_IDS:
                if table in source.tables:
                    last = max(source.last_id(table), database.last_id(con, table))
                    database.note_last_id(con, table, last)

    def _end(self) -> None:
        if unproven := [table for table, result in self.results.items() if not result.is_proven]:
            raise MigrationError(f"what is in the database differs from what was read: {', '.join(unproven)}")
        with self._database.session(wait=self.wait) as con:
            con.execute("DELETE FROM bridge_journal WHERE journal = ?", [self._unfinished])

    def _table(self, source: OldFile, table: str, use: Use) -> None:
        result, counted = TableResult(), source.count(table)
        self.results[table] = result
        with tqdm(total=counted, desc=table, unit=" rows", disable=None if self.show is None else not self.show) as bar:
            for batch in self._batches(source, table):
                use(table, batch)
                bar.update(result.rows - bar.n)
        if result.rows != counted:
            raise MigrationError(f"{table}: {counted} rows counted, {result.rows} read; run it again")

    def _batches(self, source: OldFile, table: str) -> Iterator[pa.Table]:
        """The table's rows as ours takes them; what does not fit is counted and reported."""
        unknown = source.unknown_columns(table)
        names = [*schema.columns(table), *unknown]
        for rows in source.rows(table, BATCH_ROWS, BATCH_BYTES):
            self.results[table].rows += len(rows)
            batch = None if unknown else old_file.as_table(table, rows)
            if batch is None:
                fitting = [self._fit(table, rowid, dict(zip(names, values))) for rowid, *values in rows]
                good = [row for row in fitting if row is not None]
                batch = pa.Table.from_pylist(good, arrow.table_schema(table))
            if len(batch):
                yield batch

    def _fit(self, table: str, rowid: object, row: dict[str, object]) -> dict[str, object] | None:
        result = self.results[table]
        fitted, problems = old_file.fit(table, row)
        if fitted is None:
            result.unfit_rows += 1
            why = "; ".join(f"{column} {problem}" for column, _, problem in problems)
            self.report.add(table=table, problem=why, outcome="not moved", rowid=rowid, row=row)
            return None
        for column, value, problem in problems:
            result.unfit_values += 1
            outcome = "null" if fitted.get(column) is None else "default"
            key = {k: fitted[k] for k in schema.KEYS[table]}
            self.report.add(
                table=table, problem=problem, outcome=outcome, rowid=rowid, key=key, column=column, value=value
            )
        return fitted

    def _compare(self, table: str, batch: pa.Table) -> None:
        """A dry run's part: what would become of the batch."""
        result, counts = self.results[table], {"new": len(batch)}
        if self.target.exists():
            with self._database.session(wait=self.wait, checkpoint=False) as con:
                con.register("fated", merge.fates(con, table, batch))
                counts = dict(con.execute("SELECT fate, count(*) FROM fated GROUP BY fate").fetchall())
            time.sleep(PAUSE)
        result.new += counts.get("new", 0)
        result.same += counts.get("same", 0)
        differing = counts.get("differs", 0)
        result.replaced += differing if self.prefer == "old" else 0
        result.lost += counts.get("again", 0) + (differing if self.prefer == "new" else 0)

    def _move(self, table: str, batch: pa.Table) -> None:
        result = self.results[table]
        with self._database.session(wait=self.wait) as con:
            con.register("rows_to_sum", batch)
            expected = merge.sums(con, "rows_to_sum", table)
            try:
                outcome = merge.put_new(con, table, batch, expected) or merge.put_among_others(
                    con, table, batch, expected, self.prefer
                )
                self._report_lost(table, outcome)
                con.commit()
            except merge.Different as problem:
                raise MigrationError(f"what is in the database differs ({problem}); that batch was not moved") from None
        result.source += expected
        result.gave_way += outcome.gave_way
        result.moved += outcome.found
        result.new += outcome.new
        result.same += outcome.same
        result.lost += len(outcome.lost)
        result.replaced += len(outcome.replaced)
        time.sleep(PAUSE)

    def _report_lost(self, table: str, outcome: merge.Outcome) -> None:
        """On disk before the commit, after which nothing else knows the rows that gave way."""
        for row in outcome.lost.to_pylist():
            why = "its key comes again later" if row.pop("fate") == "again" else "another row has its key"
            self.report.add(table=table, problem=why, outcome="not moved", row=row)
        for row in outcome.replaced.to_pylist():
            self.report.add(
                table=table, problem="the old file has another row with its key", outcome="replaced", row=row
            )
        self.report.sync()


@contextlib.contextmanager
def _only_one(path: pathlib.Path) -> Iterator[None]:
    """One move into a database at a time; the lock's file goes with the move."""
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MigrationError("another migration into this database is running") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
