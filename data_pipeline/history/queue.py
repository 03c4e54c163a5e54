"""The table `gex_history_queue` as a queue of downloads: which is next, and what became of it.

A row is `pending`, `started`, `completed` or `failed`.  One importer works a
DATA_DIR at a time, so a row that is `started` when it begins was left by a
crash.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from duckdb import DuckDBPyConnection

from data_pipeline.repository.database import Database
from data_pipeline.repository.schema import NOW

# Attempts at one link, and seconds to wait after the first, the second …
ATTEMPTS = 3
PAUSES = (60, 300)

# A text for the table; a client's host name or a server's answer may be longer than anyone wants.
ERROR_LIMIT = 1000

# Rows that are looked at in one session, and characters of each value: what is refused is so whatever follows them.
AT_ONCE = 1000
LOOKED_AT = 4096

_AGO = "strftime(make_timestamp(epoch_us(now())) - INTERVAL {} SECOND, '%Y-%m-%d %H:%M:%S')"


class Job(NamedTuple):
    """One link to fetch; attempts: this one included."""

    id: int
    url: str
    ticker: str
    endpoint: str
    attempts: int


class HistoryQueue:
    """The queue in the database file, in sessions of its own; one thread at a time.

    wait: seconds for the file to be free.  Raises DatabaseBusy after them.
    """

    def __init__(self, database: pathlib.Path, wait: float = 30.0):
        self._database, self._wait = Database(database), wait
        self._recovered = False

    def take(
        self,
        refusal: Callable[[Job], str | None] = lambda job: None,
        fits: Callable[[Job], bool] = lambda job: True,
    ) -> Job | None:
        """Mark the oldest row that is due as started and return it; None where none is.

        Due is a pending one, and a failed one with attempts left whose pause
        is over.  refusal: says why a job must not be tried, or None; those it
        refuses, up to AT_ONCE, are failed for good in the same session.  So
        None may also mean that so many were refused.  fits: whether a job may
        be taken now; others are left as they are.  Both are asked with the
        first LOOKED_AT characters of a job's values.  The first call finds those that a crash left started: they are
        pending again, or failed where no attempt is left.
        """
        with self._database.session(self._wait) as con:
            if not self._recovered:
                self._recover(con)
                self._recovered = True
            due = " OR ".join(
                f"(attempts = {n} AND updated_at <= {_AGO.format(pause)})" for n, pause in enumerate(PAUSES, 1)
            )
            beginnings = ", ".join(f"left({value}, {LOOKED_AT})" for value in ("url", "ticker", "endpoint"))
            refused: dict[int, str] = {}
            fit, last = None, -(2**63)
            while fit is None and not refused:
                found = con.execute(
                    f"SELECT id, {beginnings}, attempts + 1 FROM gex_history_queue WHERE id > ?"
                    f" AND (status = 'pending' OR status = 'failed' AND attempts < {ATTEMPTS} AND ({due}))"
                    f" ORDER BY id LIMIT {AT_ONCE}",
                    [last],
                ).fetchall()
                if not found:
                    break
                last = found[-1][0]
                jobs = [Job(*row) for row in found]
                refused = {job.id: why for job in jobs if (why := refusal(job))}
                fit = next((job.id for job in jobs if job.id not in refused and fits(job)), None)
            if refused:
                self._refuse(con, refused)
            return None if fit is None else self._start(con, fit)

    def finish(self, job_id: int, status: str, last_error: str | None) -> None:
        """Write down what became of a job: completed, failed, or pending again."""
        with self._database.session(self._wait) as con:
            con.execute(
                f"UPDATE gex_history_queue SET status = ?, last_error = ?, updated_at = {NOW} WHERE id = ?",
                [status, last_error and last_error[:ERROR_LIMIT], job_id],
            )

    def refuse(self, job_id: int, last_error: str) -> None:
        """Write down that a job failed, and is not to be tried again."""
        with self._database.session(self._wait) as con:
            self._refuse(con, {job_id: last_error})

    def retry(self, job_id: int) -> bool:
        """Make a row pending, as new; False if there is none of that id."""
        with self._database.session(self._wait) as con:
            changed = con.execute(
                f"UPDATE gex_history_queue SET status = 'pending', attempts = 0, last_error = NULL, updated_at = {NOW}"
                " WHERE id = ? RETURNING id",
                [job_id],
            ).fetchall()
        return bool(changed)

    def start(self, job_id: int) -> Job | None:
        """Mark this row as started, whatever it was; None if there is none."""
        with self._database.session(self._wait) as con:
            return self._start(con, job_id)

    def rows(self) -> list[dict[str, Any]]:
        """The whole table, oldest first."""
        with self._database.session(self._wait, checkpoint=False) as con:
            found = con.execute("SELECT * FROM gex_history_queue ORDER BY id")
            names = [column[0] for column in found.description]
            return [dict(zip(names, row)) for row in found.fetchall()]

    @staticmethod
    def _start(con: DuckDBPyConnection, job_id: int) -> Job | None:
        found = con.execute(
            f"UPDATE gex_history_queue SET status = 'started', attempts = attempts + 1, updated_at = {NOW}"
            " WHERE id = ? RETURNING id, url, ticker, endpoint, attempts",
            [job_id],
        ).fetchall()
        return Job(*found[0]) if found else None

    @staticmethod
    def _refuse(con: DuckDBPyConnection, refused: dict[int, str]) -> None:
        """No attempt is left to those: what is not allowed will not be the next time."""
        con.execute(
            f"UPDATE gex_history_queue SET status = 'failed', last_error = why, attempts = {ATTEMPTS},"
            f" updated_at = {NOW} FROM (SELECT unnest(?) AS job, unnest(?) AS why) WHERE id = job",
            [list(refused), [why[:ERROR_LIMIT] for why in refused.values()]],
        )

    @staticmethod
    def _recover(con: DuckDBPyConnection) -> None:
        con.execute(
            "UPDATE gex_history_queue SET status = CASE WHEN attempts < ? THEN 'pending' ELSE 'failed' END,"
            " last_error = CASE WHEN attempts < ? THEN last_error ELSE 'interrupted each time' END"
            " WHERE status = 'started'",
            [ATTEMPTS, ATTEMPTS],
        )
