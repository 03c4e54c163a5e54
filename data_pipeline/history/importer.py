"""The built-in way of history: a thread that downloads queued links and has each imported by a child process."""

import contextlib
import json
import logging
import os
import pathlib
import subprocess
import threading
import time

from data_pipeline.background import Background, child_command, child_environment
from data_pipeline.history import download
from data_pipeline.history.queue import Job
from data_pipeline.lake.layout import LakeNameError, encoded

logger = logging.getLogger("webhook")

# Looks at the queue this often while nothing wakes it, for failed links whose pause is over.
LOOK_EVERY = 30.0

# The import of one file; it takes seconds, so one that takes this long hangs.
IMPORT_TIME = 3600.0

# What another try cannot change.
FOR_GOOD = (download.Refused, LakeNameError)


class HistoryImporter(Background):
    """Takes jobs from `queue` one at a time, oldest first, and finishes them.

    queue: a `history_queue.HistoryQueue`, called from this thread alone.  An
    exception of its is logged, and tried again later.  Links that may not be
    fetched are failed many at a time, or they would keep others waiting.  The
    child is ended at `stop`, and the job is pending again: nothing is half
    done, the lake has whole partitions only.  settle: seconds between the
    first news of a link and the work, so that a handful of links is taken in
    before a download and an import want the machine.
    """

    def __init__(
        self,
        queue,
        data_dir: pathlib.Path,
        hosts: tuple[str, ...],
        max_bytes: int,
        settle: float = 0.0,
        api_key: str = "",
    ):
        super().__init__("HistoryImporter")
        self._settle, self._api_key = settle, api_key
        self._queue, self._data_dir, self._hosts = queue, data_dir, hosts
        self._limits = download.Limits(bytes=max_bytes)
        self._woken = threading.Event()
        self._lock = threading.Lock()  # guards the two below, which `stop` ends
        self._download: download.Download | None = None
        self._child: subprocess.Popen | None = None
        self._completed = self._failed = 0
        self._current: int | None = None

    def wake(self) -> None:
        """There is a new row; to be called from any thread."""
        self._woken.set()

    def _wake(self) -> None:
        self._woken.set()
        with self._lock:
            if self._download is not None:
                self._download.cancel("stopped")
            if self._child is not None:
                self._child.terminate()

    def stats(self) -> dict:
        return {"completed": self._completed, "failed": self._failed, "current": self._current}

    def _run(self) -> None:
        settle = self._settle
        while not self._stopping.wait(settle):
            self._woken.clear()
            failed = self._failed
            try:
                job = self._queue.take(self._refusal)
                done = job is None and self._failed == failed
            except Exception as problem:
                _log_trouble(f"the history queue cannot be read; next try in {LOOK_EVERY:g} s", problem)
                job, done = None, True
            if done:
                self._woken.wait(LOOK_EVERY)
                settle = self._settle
                continue
            if job is not None:
                self.work(job)
            settle = 0.0  # the next one, at once

    def _refusal(self, job: Job) -> str | None:
        """Why a job must not be tried, as far as it can be seen without trying; also counts and logs it."""
        job = _named(job)
        try:
            encoded(job.ticker), encoded(job.endpoint)
            download.checked(job.url, self._hosts)
        except FOR_GOOD as problem:
            self._report(job, "failed", str(problem), 0.0)
            return str(problem)
        return None

    def work(self, job: Job) -> str:
        """Do one job and finish it; returns its new status."""
        self._current = job.id
        begun, for_good = time.monotonic(), False
        try:
            trouble = self._fetch_and_import(job)
            status = "completed"
        except (download.DownloadFailed, LakeNameError, ImportProblem) as problem:
            status, trouble, for_good = "failed", str(problem), isinstance(problem, FOR_GOOD)
        except Exception as problem:
            logger.exception("history job %d", job.id)
            status, trouble = "failed", f"{type(problem).__name__}: {problem}"
        if self._stopping.is_set() and status == "failed":
            status, trouble = "pending", None
        self._report(job, status, trouble, time.monotonic() - begun)
        self._finish(job, status, trouble, for_good)
        self._current = None
        return status

    def _report(self, job: Job, status: str, trouble: str | None, seconds: float) -> None:
        level = logging.WARNING if status == "failed" else logging.INFO
        said = f": {ascii(trouble)}" if trouble else ""
        logger.log(level, "history job %d %s after %.1f s%s", job.id, status, seconds, said)
        self._completed += status == "completed"
        self._failed += status == "failed"

    def _finish(self, job: Job, status: str, trouble: str | None, for_good: bool) -> None:
        while True:
            try:
                if for_good and status == "failed":
                    return self._queue.refuse(job.id, trouble)
                return self._queue.finish(job.id, status, trouble)
            except Exception as problem:
                _log_trouble(f"the end of history job {job.id} cannot be written down", problem)
                if self._stopping.wait(LOOK_EVERY):
                    return None  # it stays `started` and is taken again

    def _fetch_and_import(self, job: Job) -> str | None:
        """Returns what is to be said of bad records; raises DownloadFailed, LakeNameError, ImportProblem."""
        job = _named(job)
        encoded(job.ticker), encoded(job.endpoint)
        folder = download.folder(self._data_dir, job.ticker, job.endpoint)
        fetching = download.Download(job.url, folder, self._hosts, self._limits, api_key=self._api_key)
        with self._lock:
            self._download = fetching
        try:
            self._check_stop()
            file = fetching.run().path
        finally:
            with self._lock:
                self._download = None
        return self._import(file, job)

    def _import(self, file: pathlib.Path, job: Job) -> str | None:
        command = child_command(
            "data_pipeline",
            "import",
            str(file.absolute()),
            f"--ticker={job.ticker}",
            f"--endpoint={job.endpoint}",
            f"--data-dir={self._data_dir.absolute()}",
            "--json",
            "--background",
        )
        with self._lock:
            self._check_stop()
            child = self._child = subprocess.Popen(
                command,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, 19)  # requests come first
        try:
            out, err = child.communicate(timeout=IMPORT_TIME)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise ImportProblem(f"the import was not done after {IMPORT_TIME:g} s") from None
        finally:
            with self._lock:
                self._child = None
        try:
            (said,) = json.loads(out)["files"]
        except (ValueError, KeyError, TypeError):
            last = ascii(err[-2000:].decode("utf-8", "replace"))
            logger.error("import of history job %d ended with %d: %s", job.id, child.returncode, last)
            raise ImportProblem(f"the import ended with code {child.returncode}") from None
        if said.get("error"):
            raise ImportProblem(said["error"])
        return said["trouble"] or None

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise ImportProblem("stopped")


def _named(job: Job) -> Job:
    """The job with what its link's name tells, where the ticker or the endpoint is empty."""
    ticker, endpoint = download.named_in(job.url)
    return job._replace(ticker=job.ticker or ticker, endpoint=job.endpoint or endpoint)


class ImportProblem(Exception):
    """The file was fetched, but its import failed; the text says why."""


def _log_trouble(what: str, problem: Exception) -> None:
    """One line where the database or the disk says no; what nobody foresaw, with its traceback."""
    # Imported here: it is heavy, and there by now.
    import duckdb

    from data_pipeline.repository.database import DatabaseBusy, DatabaseDamaged

    foreseen = isinstance(problem, (duckdb.Error, DatabaseBusy, DatabaseDamaged, OSError))
    logger.error("%s: %s", what, ascii(str(problem)), exc_info=None if foreseen else problem)
