"""The built-in way of history: two threads that download queued links; a child process imports each file."""

import contextlib
import json
import logging
import os
import pathlib
import subprocess
import threading
import time
from urllib.parse import urlsplit

import duckdb

from data_pipeline.background import Background, child_command, child_environment
from data_pipeline.history import download
from data_pipeline.history.queue import HistoryQueue, Job
from data_pipeline.lake.layout import LakeNameError, encoded
from data_pipeline.repository.database import DatabaseBusy, DatabaseDamaged

logger = logging.getLogger("webhook")

# Looks at the queue this often while nothing wakes it, for failed links whose pause is over.
LOOK_EVERY = 30.0

# The import of one file; it takes seconds, so one that takes this long hangs.
IMPORT_TIME = 3600.0

# What another try cannot change.
FOR_GOOD = (download.Refused, LakeNameError)


class HistoryImporter(Background):
    """Takes jobs from `queue`, oldest first, on two threads, and finishes them.

    Of the links of one host, or of one ticker and endpoint, one is worked on at a time: a slow host holds up no links
    but its own.  Files are imported one by one.  queue: used by these threads alone; an exception of its is logged,
    and tried again later.  Links that may not be fetched are failed many at a time, or they would keep others
    waiting.  The child is ended at `stop`, and the job is pending again: nothing is half done, the lake has whole
    partitions only.  settle: seconds between the first news of a link and the work, so that a handful of links is
    taken in before a download and an import want the machine.
    """

    def __init__(
        self,
        queue: HistoryQueue,
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
        self._taking = threading.Lock()  # held while a job is chosen
        self._importing = threading.Lock()  # held while a file is imported
        self._lock = threading.Lock()  # guards all below; `stop` ends the downloads and the child
        self._downloads: set[download.Download] = set()
        self._child: subprocess.Popen[bytes] | None = None
        self._completed = self._failed = 0
        self._current: list[Job] = []

    def wake(self) -> None:
        """There is a new row; to be called from any thread."""
        self._woken.set()

    def _wake(self) -> None:
        self._woken.set()
        with self._lock:
            for one in self._downloads:
                one.cancel("stopped")
            if self._child is not None:
                self._child.terminate()

    def stats(self) -> dict[str, object]:
        """Jobs by how they ended; the ids of those that are worked on."""
        with self._lock:
            current = sorted(job.id for job in self._current)
            return {"completed": self._completed, "failed": self._failed, "current": current}

    def _run(self) -> None:
        second = threading.Thread(target=self._work_off, name="HistoryImporter", daemon=True)
        second.start()
        self._work_off()
        second.join()

    def _work_off(self) -> None:
        settle = self._settle
        while not self._stopping.wait(settle):
            self._woken.clear()
            if self._stopping.is_set():
                self._woken.set()  # the other thread may not wait either
                return
            failed = self._failed
            try:
                job = self._take()
                done = job is None and self._failed == failed
            except Exception as problem:
                _log_trouble(f"the history queue cannot be read; next try in {LOOK_EVERY:g} s", problem)
                job, done = None, True
            if done:
                self._woken.wait(LOOK_EVERY)
                settle = self._settle
                continue
            if job is not None:
                self._woken.set()  # there may be one for the other thread
                self.work(job)
            settle = 0.0  # the next one, at once

    def _take(self) -> Job | None:
        with self._taking:
            job = self._queue.take(self._refusal, self._is_beside)
            if job is not None:
                with self._lock:
                    self._current.append(job)
            return job

    def _is_beside(self, job: Job) -> bool:
        """Whether a job can be worked on beside those that are: they may not wait for the same host or folder."""
        with self._lock:
            return not any(_host(one) == _host(job) or self._folder(one) == self._folder(job) for one in self._current)

    def _folder(self, job: Job) -> pathlib.Path:
        job = _named(job)
        return download.folder(self._data_dir, job.ticker, job.endpoint)

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
        with self._lock:
            self._current = [one for one in self._current if one.id != job.id]
        return status

    def _report(self, job: Job, status: str, trouble: str | None, seconds: float) -> None:
        level = logging.WARNING if status == "failed" else logging.INFO
        said = f": {ascii(trouble)}" if trouble else ""
        logger.log(level, "history job %d %s after %.1f s%s", job.id, status, seconds, said)
        with self._lock:
            self._completed += status == "completed"
            self._failed += status == "failed"

    def _finish(self, job: Job, status: str, trouble: str | None, for_good: bool) -> None:
        while True:
            try:
                if for_good and status == "failed":
                    self._queue.refuse(job.id, trouble or "")
                else:
                    self._queue.finish(job.id, status, trouble)
                return
            except Exception as problem:
                _log_trouble(f"the end of history job {job.id} cannot be written down", problem)
                if self._stopping.wait(LOOK_EVERY):
                    return  # it stays `started` and is taken again

    def _fetch_and_import(self, job: Job) -> str | None:
        """Returns what is to be said of bad records; raises DownloadFailed, LakeNameError, ImportProblem."""
        job = _named(job)
        encoded(job.ticker), encoded(job.endpoint)
        fetching = download.Download(job.url, self._folder(job), self._hosts, self._limits, api_key=self._api_key)
        with self._lock:
            self._check_stop()
            self._downloads.add(fetching)
        try:
            file = fetching.run().path
        finally:
            with self._lock:
                self._downloads.discard(fetching)
        with self._importing:
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


def _host(job: Job) -> str:
    """The host of a link; empty where the link is no address, which is refused when it is looked at."""
    try:
        return download.normal(urlsplit(job.url).hostname or "")
    except ValueError:
        return ""


class ImportProblem(Exception):
    """The file was fetched, but its import failed; the text says why."""


def _log_trouble(what: str, problem: Exception) -> None:
    """One line where the database or the disk says no; what nobody foresaw, with its traceback."""
    foreseen = isinstance(problem, (duckdb.Error, DatabaseBusy, DatabaseDamaged, OSError))
    logger.error("%s: %s", what, ascii(str(problem)), exc_info=None if foreseen else problem)
