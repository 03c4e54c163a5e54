"""Moving over: the original's SQLite file into our tables, proven, while the server runs.

In three steps:

1. Read: the whole file goes, as Arrow batches, into a folder beside the
   database.  Nothing has touched the database yet.
2. Prove: rows and checksums of what was read from SQLite equal those of what
   lies in the folder; else it ends here.
3. Move: a batch a session, one transaction each, with pauses in which the
   server gets in.  A transaction proves its own rows before it commits, and
   notes how far the move is; so after a crash the same command goes on
   where it was.  Should a batch differ, all that were moved are taken back.

What does not fit our tables, and what lost against another row, is in the
report: JSON lines, each a row or a value with the reason.
"""

import contextlib
import fcntl
import functools
import itertools
import json
import operator
import pathlib
import secrets
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field

import duckdb
import pyarrow as pa
from tqdm import tqdm

from data_pipeline import BridgeError
from data_pipeline.files import atomic
from data_pipeline.migration import merge, old_file
from data_pipeline.migration.merge import Sums
from data_pipeline.migration.report import Report
from data_pipeline.repository import database, foreign_file, schema

# One of DuckDB's row groups: it then writes them straight into the file.
BATCH_ROWS = 122_880
BATCH_BYTES = 32 << 20

# A session takes about half a second.  Several transactions at once: DuckDB keeps a table's keys with one thread each.
BATCHES_AT_ONCE = 3
SESSION_ROWS = BATCHES_AT_ONCE * BATCH_ROWS + BATCH_ROWS // 2

# Long enough for the server, which looks every 20 ms, to get in between two sessions.
PAUSE = 0.06


class MigrationError(BridgeError):
    """The move could not be done; the text is for the operator."""


@dataclass
class TableResult:
    """Counts of one table.  source and moved are proven equal but for what `lost`."""

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
        return not self.source.differs_from(self.gave_way + self.moved)


class Migration:
    """One move of the file `old` into the DuckDB file `target`.

    merge: the target may have rows already.  prefer: which of two different
    rows with one key is kept, `old` (the SQLite file's) or `new` (ours).
    report: where the report goes, by default beside the database; wait:
    seconds to try for the database while others have it; show: a progress
    bar on standard error, None for where that is a terminal.
    """

    def __init__(self, old, target, merge=False, prefer="new", report=None, wait=60.0, show=None):
        self.old, self.target = pathlib.Path(old), pathlib.Path(target)
        self.merge, self.prefer, self.wait, self.show = merge, prefer, wait, show
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.report = Report(pathlib.Path(report) if report else self.target.parent / f"migrate-{stamp}.jsonl")
        self.folder = self.target.parent / f"{self.target.stem}.migrating"
        self.results: dict[str, TableResult] = {}
        self.not_ours: list[str] = []
        self._database = database.Database(self.target)
        self._plan: dict = {}

    def look(self) -> dict[str, TableResult]:
        """A dry run: read everything, compare with what the target has, write only the report."""
        foreign_file.refuse_foreign_file(self.target)
        with (
            contextlib.closing(self.report),
            tempfile.TemporaryDirectory(prefix="gex-bridge-") as scratch,
            old_file.open_file(self.old, pathlib.Path(scratch)) as source,
        ):
            self.not_ours = source.others
            for table in source.tables:
                self._read(source, table, functools.partial(self._look_at, table))
        return self.results

    def run(self) -> dict[str, TableResult]:
        """Do it, or go on with it; raises MigrationError, LegacyError, DatabaseBusy, NotADatabase."""
        foreign_file.refuse_foreign_file(self.target)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _only_one(self.folder), contextlib.closing(self.report):
            if not self._is_unfinished():
                try:
                    self._refuse_used_target()
                    self._stage()
                except BaseException:
                    shutil.rmtree(self.folder)
                    raise
            self._move()
            self._finish()
        return self.results

    # 1. Read

    def _read(self, source, table: str, use, plain: bool = False):
        """What `use` makes of the table's batches; counts and report come as they are read."""
        result, counted = TableResult(), source.count(table)
        self.results[table] = result
        with self._bar(f"reading {table}", counted) as bar:
            used = use(_gathered(self._plain(source, table, bar) if plain else self._fitting(source, table, bar)))
        if result.rows != counted:
            raise MigrationError(f"{table}: {counted} rows counted, {result.rows} read; nothing was changed")
        return used

    def _plain(self, source, table: str, bar):
        for batch in source.plain(table):
            self.results[table].rows += len(batch)
            bar.update(len(batch))
            yield batch

    def _fitting(self, source, table: str, bar):
        for batch in source.clean(table):
            self.results[table].rows += len(batch)
            bar.update(len(batch))
            batch, others = old_file.split_by_utf8(batch)
            yield batch
            yield from self._fitted(table, [(None, row) for row in others])
        if self.results[table].rows == bar.total:
            return  # all were clean: spare the second look at the whole file
        pending = []
        for pair in source.loose(table):
            self.results[table].rows += 1
            bar.update()
            pending.append(pair)
            if len(pending) == old_file.PAYLOADS_AT_ONCE:
                yield from self._fitted(table, pending)
                pending = []
        yield from self._fitted(table, pending)

    def _fitted(self, table: str, rows: list):
        result, good = self.results[table], []
        for rowid, row in rows:
            fitted, problems = old_file.fit(table, row)
            if fitted is None:
                result.unfit_rows += 1
                why = "; ".join(f"{column} {problem}" for column, _, problem in problems)
                self.report.add(table=table, problem=why, outcome="not moved", rowid=rowid, row=row)
                continue
            good.append(fitted)
            for column, value, problem in problems:
                result.unfit_values += 1
                outcome = "null" if fitted.get(column) is None else "default"
                key = {k: fitted[k] for k in schema.KEYS[table]}
                self.report.add(
                    table=table, problem=problem, outcome=outcome, rowid=rowid, key=key, column=column, value=value
                )
        if good:
            yield pa.RecordBatch.from_pylist(good, old_file.arrow_schema(table))

    def _look_at(self, table: str, batches) -> None:
        for batch in batches:
            counts = {"new": len(batch)}
            if self.target.exists():
                with self._database.session(wait=self.wait, checkpoint=False) as con:
                    con.register("fated", merge.fates(con, table, pa.Table.from_batches([batch])))
                    counts = dict(con.execute("SELECT fate, count(*) FROM fated GROUP BY fate").fetchall())
                time.sleep(PAUSE)
            self._count(self.results[table], counts)

    def _count(self, result: TableResult, counts: dict[str, int]) -> None:
        result.new += counts.get("new", 0)
        result.same += counts.get("same", 0)
        differing = counts.get("differs", 0)
        result.replaced += differing if self.prefer == "old" else 0
        result.lost += counts.get("again", 0) + (differing if self.prefer == "new" else 0)

    # 2. Stage and prove

    def _stage(self) -> None:
        before = old_file.fingerprint(self.old)
        sums = {}
        with old_file.open_file(self.old, self.folder / "copy") as source, duckdb.connect() as con:
            last_ids = {t: source.last_id(t) for t in schema.TABLES_WITH_IDS if t in source.tables}
            self.not_ours = source.others
            for table in source.tables:
                write = functools.partial(self._write, con, table)
                try:
                    sums[table] = self._read(source, table, write, plain=True)
                except old_file.NotPlain:
                    sums[table] = self._read(source, table, write)
                self.results[table].source = sum(sums[table], Sums())
        self.report.sync()
        self._plan = {
            "old": str(self.old.resolve()),
            "fingerprint": before,
            "target_prefer": self.prefer,
            "token": secrets.token_hex(8),
            "report": str(self.report.path),
            "report_lines": self.report.lines,
            "last_ids": last_ids,
            "not_ours": self.not_ours,
            "tables": {t: asdict(r) for t, r in self.results.items()},
            "batches": {t: [asdict(s) for s in each] for t, each in sums.items()},
        }
        atomic.replace(self.folder / "plan.json", json.dumps(self._plan).encode())

    def _is_unfinished(self) -> bool:
        """Whether an earlier run read everything and did not get to the end; takes up its plan."""
        try:
            plan = json.loads((self.folder / "plan.json").read_bytes())
        except FileNotFoundError:
            return False
        if plan["fingerprint"] != old_file.fingerprint(self.old) or plan["target_prefer"] != self.prefer:
            raise MigrationError(
                f"an unfinished migration of {plan['old']}, as it was, with --prefer {plan['target_prefer']} is in"
                f" {self.folder}: finish it with the same command, or remove that folder"
            )
        self._plan = plan
        self.report.path, self.report.lines = pathlib.Path(plan["report"]), plan["report_lines"]
        self.not_ours = plan["not_ours"]
        with duckdb.connect() as con:
            for table, r in plan["tables"].items():
                self.results[table] = TableResult(**{**r, **{k: Sums(**r[k]) for k in ("source", "gave_way", "moved")}})
                for number, expected in enumerate(plan["batches"][table]):
                    if Sums(**expected).differs_from(_sums(con, table, _mapped(self._staged(table, number)))):
                        raise MigrationError(f"{self.folder} is damaged: remove it, then start again with --merge")
        return True

    def _write(self, con, table: str, batches) -> list[Sums]:
        """Write the batches, one behind the reading; the sums of each, and it is proven that they are in the files."""

        def write(number: int, batch: pa.RecordBatch) -> Sums:
            read, path = pa.Table.from_batches([batch]), self._staged(table, number)
            _write_table(path, read)
            if not _mapped(path).equals(read):
                raise MigrationError(f"{path} is not what was read from {self.old}; nothing was changed")
            return _sums(con, table, read)

        with ThreadPoolExecutor(1, "migrate-stage") as pool:
            written = []
            for number, batch in enumerate(batches):
                if written:
                    written[-1].result()
                written.append(pool.submit(write, number, batch))
            return [w.result() for w in written]

    def _staged(self, table: str, number: int) -> pathlib.Path:
        return self.folder / f"{table}.{number}.arrow"

    def _batches(self, table: str):
        """Yield (number, batch).  A mapping goes with its batch, so the memory held does not grow."""
        for number in range(len(self._plan["batches"][table])):
            yield number, _mapped(self._staged(table, number))

    def _refuse_used_target(self) -> None:
        if self.merge or not self.target.exists():
            return
        with self._database.session(wait=self.wait, checkpoint=False) as con:
            rows = {t: con.execute(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in schema.TABLES}
        if any(rows.values()):
            used = ", ".join(f"{t} {n}" for t, n in rows.items() if n)
            raise MigrationError(f"{self.target} is in use (rows: {used}): add --merge to put the old rows beside them")

    # 3. Move

    def _move(self) -> None:
        rows = sum(r.source.rows for r in self.results.values())
        try:
            with self._bar("moving", rows) as bar, ThreadPoolExecutor(BATCHES_AT_ONCE, "migrate") as pool:
                for session, batches in enumerate(self._sessions()):
                    time.sleep(PAUSE if session else 0)
                    with self._database.session(wait=self.wait) as con:
                        # First of all: from now on nobody gives out an id that is about to come in.
                        for table, last in self._plan["last_ids"].items():
                            database.note_last_id(con, table, max(last, database.last_id(con, table)))
                        # Each in a transaction of its own; where one has a key that is there already, it waits
                        # for the others.
                        tried = [pool.submit(self._move_new, con, *batch) for batch in batches]
                        wait(tried)  # none may be at work when the session closes, even if another failed
                        done = [t.result() for t in tried]
                        for batch in itertools.compress(batches, map(operator.not_, done)):
                            self._move_among_others(con, *batch)
                    bar.update(sum(len(batch) for _, _, batch in batches))
            for table, result in self.results.items():
                self._add_up(table)
                if not result.is_proven:
                    raise merge.Different(table)
        except merge.Different as problem:
            self._take_back()
            raise MigrationError(f"what is in the database differs ({problem}); all was taken back") from problem

    def _sessions(self):
        """Yield lists of (table, number, batch): what is moved in one session."""
        held, rows = [], 0
        for table in self.results:
            for number, batch in self._batches(table):
                if held and rows + len(batch) > SESSION_ROWS:
                    yield held
                    held, rows = [], 0
                held.append((table, number, batch))
                rows += len(batch)
        yield held

    def _move_new(self, con, table: str, number: int, batch: pa.Table) -> bool:
        """Whether the batch is in the tables now; if not, nothing of it is."""
        with con.cursor() as own:
            own.execute(f"USE {database.CATALOG}")  # a cursor does not take that over
            if self._is_moved(own, table, number):
                return True
            outcome = merge.put_new(own, table, batch, self._expected(table, number))
            try:
                return outcome is not None and self._commit(own, table, number, batch, outcome)
            except (duckdb.ConstraintException, duckdb.TransactionException):
                return False

    def _move_among_others(self, con, table: str, number: int, batch: pa.Table) -> None:
        outcome = merge.put_among_others(con, table, batch, self._expected(table, number), self.prefer)
        self._commit(con, table, number, batch, outcome)

    def _expected(self, table: str, number: int) -> Sums:
        return Sums(**self._plan["batches"][table][number])

    def _is_moved(self, con, table: str, number: int) -> bool:
        return database.position(con, self._journal(table, number)) > 0

    def _journal(self, table: str = "", number: int | str = "") -> str:
        """In the table of the journals, beside the server's: position 1 says that the batch is in."""
        return f"migrate:{self._plan['token']}:{table}:{number}" if table else f"migrate:{self._plan['token']}:"

    def _commit(self, con, table: str, number: int, batch: pa.Table, outcome: merge.Outcome) -> bool:
        try:
            self._remember(table, number, batch, outcome)
            database.note_position(con, self._journal(table, number), 1)
            con.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                con.rollback()  # a commit that failed has rolled back already
            raise
        return True

    def _remember(self, table: str, number: int, batch: pa.Table, outcome: merge.Outcome) -> None:
        """Before the commit: the report of the rows that go, and what `_take_back` and `_add_up` need."""
        for row in outcome.lost.to_pylist():
            why = "its key comes again later" if row.pop("fate") == "again" else "another row has its key"
            self.report.add(table=table, problem=why, outcome="not moved", row=row)
        for row in outcome.replaced.to_pylist():
            why = "the old file has another row with its key"
            self.report.add(table=table, problem=why, outcome="replaced", row=row)
        self.report.sync()
        if outcome.mine is not batch:
            _write_table(self.folder / f"{table}.{number}.mine", outcome.mine)
            _write_table(self.folder / f"{table}.{number}.replaced", outcome.replaced)
        counts = {
            "new": outcome.new,
            "same": outcome.same,
            "lost": len(outcome.lost),
            "replaced": len(outcome.replaced),
            "gave_way": asdict(outcome.gave_way),
            "moved": asdict(outcome.found),
            "report_lines": self.report.lines,
        }
        atomic.replace(self.folder / f"{table}.{number}.json", json.dumps(counts).encode(), durable=False)

    def _add_up(self, table: str) -> None:
        result = self.results[table]
        for number in range(len(self._plan["batches"][table])):
            counts = json.loads((self.folder / f"{table}.{number}.json").read_bytes())
            for name in ("new", "same", "lost", "replaced"):
                setattr(result, name, getattr(result, name) + counts[name])
            result.gave_way += Sums(**counts["gave_way"])
            result.moved += Sums(**counts["moved"])
            self.report.lines = max(self.report.lines, counts["report_lines"])

    def _take_back(self) -> None:
        for table in reversed(self.results):
            for number in reversed(range(len(self._plan["batches"][table]))):
                with self._database.session(wait=self.wait) as con:
                    if not self._is_moved(con, table, number):
                        continue
                    mine = self.folder / f"{table}.{number}.mine"
                    con.begin()
                    if mine.exists():
                        merge.take_back(con, table, _mapped(mine), _mapped(mine.with_suffix(".replaced")))
                    else:
                        batch = _mapped(self._staged(table, number))
                        merge.take_back(con, table, batch, batch.slice(0, 0))
                    database.note_position(con, self._journal(table, number), 0)
                    con.commit()
                time.sleep(PAUSE)
        if self.report.lines:
            self.report.add(table=None, problem="the move was taken back", outcome="the lines above count for nothing")
        self._finish()

    def _finish(self) -> None:
        # Without the plan the folder is only litter, which the next run removes.
        (self.folder / "plan.json").unlink()
        with self._database.session(wait=self.wait) as con:
            con.execute("DELETE FROM bridge_journal WHERE starts_with(journal, ?)", [self._journal()])
        shutil.rmtree(self.folder)

    def _bar(self, title: str, rows: int) -> tqdm:
        return tqdm(total=rows, desc=title, unit=" rows", disable=None if self.show is None else not self.show)


@contextlib.contextmanager
def _only_one(folder: pathlib.Path):
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MigrationError("another migration into this database is running") from None
        yield


def _gathered(batches):
    """The rows of small batches in batches of BATCH_ROWS rows, or fewer where they are large."""
    held, rows, size = [], 0, 0
    for batch in batches:
        while len(batch):
            part = batch.slice(0, BATCH_ROWS - rows)
            batch = batch.slice(len(part))
            held.append(part)
            rows += len(part)
            size += part.nbytes
            if rows == BATCH_ROWS or size >= BATCH_BYTES:
                yield _joined(held)
                held, rows, size = [], 0, 0
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    # Of one batch concat_batches makes a copy too.
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _sums(con, table: str, rows: pa.Table) -> Sums:
    con.register("rows_to_sum", rows)
    return merge.sums(con, "rows_to_sum", table)


def _write_table(path: pathlib.Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)


def _mapped(path: pathlib.Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
