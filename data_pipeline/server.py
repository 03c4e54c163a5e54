"""The server: sockets, worker threads, signals; start and stop of every part."""

import argparse
import collections
import json
import logging
import os
import resource
import signal
import socket
import socketserver
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

from data_pipeline import __version__, config, logs
from data_pipeline.bridge import Bridge
from data_pipeline.dashboard import Dashboard
from data_pipeline.discord import Discord
from data_pipeline.download_command import DownloadRunner, Template
from data_pipeline.gexbot import GexBotClient, Poller, StatusRefresher
from data_pipeline.handler import GEXBridgeRequestHandler
from data_pipeline.intake import Connection, Limits, Lounge
from data_pipeline.pages import Pages
from data_pipeline.repository.journal import FolderInUse
from data_pipeline.repository.magic import NotADatabase
from data_pipeline.repository.service import Repository
from data_pipeline.watchdog import Watchdog

log = logging.getLogger("webhook")

PROMPT = 0.01  # s that a worker gives a client to send its request, before it takes the next one
SLOW_WORKERS = 8
FILES_WANTED = 65536  # descriptors


class BridgeServer(socketserver.TCPServer):
    """A threading server whose threads are reused: each of `workers` accepts, answers, and accepts again.

    A request that does not arrive at once waits in the lounge, where it costs
    no thread; it is answered by one of SLOW_WORKERS.  What a client does not
    take of its answer at once goes out from the lounge too.  `count` and
    `counts` keep the number of answers by path and status.
    """

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], bridge: Bridge, pages: Pages, workers: int, most: int, limits: Limits):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, GEXBridgeRequestHandler)
        self.bridge = bridge
        self.pages = pages
        self.limits = limits
        self.started = time.monotonic()
        self._counts: collections.Counter[tuple[str, int]] = collections.Counter()
        # Guards `_counts` and `_busy`; notified when a request is done.
        self._lock = threading.Condition()
        self._busy = 0
        self._date = 0, ""
        self._closing = False
        self._lounge = Lounge(most, self._answer_late)
        self._late = ThreadPoolExecutor(SLOW_WORKERS, thread_name_prefix="SlowWorker")
        self._workers = [
            threading.Thread(target=self._work, name=f"Worker-{n}", daemon=True) for n in range(1, workers + 1)
        ]

    @property
    def port(self) -> int:
        return self.server_address[1]

    def start(self) -> None:
        self._lounge.start()
        for worker in self._workers:
            worker.start()

    def stop(self, timeout: float) -> bool:
        """Accept nothing more and let requests finish; True if all did within `timeout` seconds."""
        self._closing = True
        until = time.monotonic() + timeout
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes every worker in accept()
        with self._lock:
            self._lock.wait_for(lambda: self._busy == 0, timeout)
        self._lounge.stop(max(0.0, until - time.monotonic()))
        self._late.shutdown(wait=False, cancel_futures=True)
        self.server_close()
        if cut_off := self._busy + self._lounge.sending:
            log.warning("%d requests were cut off", cut_off)
        return not cut_off

    def count(self, path: str, status: int) -> None:
        with self._lock:
            self._counts[path, status] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """{path: {status: number of answers}}; paths that are no endpoint are `other`."""
        with self._lock:
            counted = list(self._counts.items())
        found: dict[str, dict[str, int]] = {}
        for (path, status), number in sorted(counted):
            found.setdefault(path, {})[str(status)] = number
        return found

    def date_header(self) -> str:
        """Now, as the Date header has it; made once a second."""
        second, text = self._date
        if second != (now := int(time.time())):
            text = formatdate(now, usegmt=True)
            self._date = now, text
        return text

    def _work(self) -> None:
        while not self._closing:
            try:
                sock, address = self.socket.accept()
            except OSError as problem:
                if not self._closing:
                    log.error("cannot accept: %s", problem)
                    time.sleep(0.1)
                continue
            self._begin(Connection(sock, address, self.limits))

    def _begin(self, connection: Connection) -> None:
        """Answer a client that sends its request at once; the others go to the lounge."""
        until = time.monotonic() + PROMPT
        try:
            try:
                connection.receive_all(until, socket.MSG_DONTWAIT)  # most often it is here already
            except BlockingIOError:
                connection.sock.settimeout(PROMPT)
                connection.receive_all(until)
        except TimeoutError:
            return self._lounge.add(connection)
        except OSError:
            connection.silent = True
        self._answer(connection)

    def _answer_late(self, connection: Connection) -> None:
        if self._closing:
            connection.sock.close()
        else:
            self._late.submit(self._answer, connection)

    def _answer(self, connection: Connection) -> None:
        with self._lock:
            self._busy += 1
        try:
            if not connection.silent:
                self.RequestHandlerClass(connection, connection.address, self)
        except Exception:
            log.exception("unforeseen error while answering %s", connection.address[0])
        # Before it counts as done: a stop waits for what is being worked on, then for what the lounge still sends.
        if connection.linger():
            self._lounge.add(connection)
        else:
            connection.sock.close()
        with self._lock:
            self._busy -= 1
            self._lock.notify_all()


class Application:
    """Every part of the server, built from the settings and handed what it needs."""

    def __init__(self, settings: config.Settings):
        self.settings = settings
        self.repository = Repository(settings)
        self.discord = Discord(
            settings.discord_bot_token, settings.alt_channel_option_trades or settings.discord_channel_id,
            settings.discord_dm_user_id, settings.discord_api_url,
        )
        self.downloads = self._downloads()
        self.bridge = Bridge(self.repository, Dashboard(settings.dashboard_url), self.downloads, self.discord)
        self.gexbot = GexBotClient(settings.gexbot_api_key, settings.gexbot_api_url)
        self.poller = Poller(self.gexbot, settings.poll_interval, self._deliver)
        self.refresher = StatusRefresher(self.gexbot, settings.gex_status_symbols, settings.data_dir / "gex")
        limits = Limits(settings.max_body_bytes, settings.head_timeout, settings.body_timeout)
        self.server = BridgeServer(
            (settings.host, settings.port), self.bridge, Pages(settings, self.repository, self.bridge, self.stats),
            settings.http_workers, settings.max_connections, limits,
        )
        self.watchdog = Watchdog(self.server.server_address, self.repository.stats)

    def _downloads(self) -> DownloadRunner | None:
        """Raises ConfigError for a command in which a value would not be safe."""
        if not self.settings.history_download_command:
            return None
        return DownloadRunner(Template.parse(self.settings.history_download_command), self.settings.root)

    def start(self) -> None:
        """Take the data folder, bring the store back, answer.  Raises FolderInUse, NotADatabase, OSError."""
        self.repository.open()
        self.bridge.restore(self.settings.data_dir)
        self.server.start()
        log.info("Starting GEX bridge on %s:%d", self.settings.host, self.server.port)
        self.repository.start()
        self.discord.start()
        if self.downloads is not None:
            self.downloads.start()
        self.poller.start()
        if self.settings.gex_status_symbols:
            self.refresher.start()
        self.watchdog.start()

    def stop(self) -> bool:
        """Stop in order, within STOP_TIMEOUT; True if everything is flushed.

        First what brings payloads in, then what takes them; the journal and
        what is behind it last.
        """
        self.watchdog.stop()
        patience = self.settings.stop_timeout
        until = time.monotonic() + patience
        self.poller.stop(0)
        self.refresher.stop(0)
        answered = self.server.stop(patience / 4)
        if self.downloads is not None:
            self.downloads.stop(patience / 4)
        self.discord.stop(patience / 4)
        flushed = self.repository.stop(max(0.2, until - time.monotonic()))
        self.gexbot.close()
        return answered and flushed

    def stats(self) -> dict:
        """What every part counts; see README, `/status`."""
        return {
            "requests": self.server.counts(),
            **self.repository.stats(),
            "discord": self.discord.stats(),
            "poller": self.poller.stats(),
            "refresher": self.refresher.stats(),
            "downloads": self.downloads.stats() if self.downloads is not None else {},
            "dashboard": self.bridge.dashboard.stats(),
        }

    def _deliver(self, payload: dict) -> None:
        """What the poller fetched comes in as any webhook does."""
        self.bridge.universal(json.dumps(payload).encode(), payload, "127.0.0.1", "GEXBotPoller")


def serve(settings: config.Settings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code.  A second signal ends it at once."""
    logs.configure(settings.debug, settings.log_json)
    _raise_file_limit()
    woken = threading.Event()
    # The system may hand a signal to any thread; Python only takes note then, and a wait in this one would go on.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def on_signal(number, frame):
        if woken.is_set():
            os._exit(128 + number)
        woken.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        application = Application(settings)
        application.start()
    except config.ConfigError as problem:
        return _wrong_setting(problem)
    except (FolderInUse, NotADatabase) as problem:
        return _cannot_start(str(problem))
    except OSError as problem:
        return _cannot_start(f"{problem.filename or f'{settings.host}:{settings.port}'}: {problem.strerror or problem}")
    while not woken.is_set():
        os.read(wake_read, 1)
    log.info("Stopping GEX bridge")
    if not application.stop():
        log.warning("not everything was flushed in time; it is in the journal and is done at the next start")
    return 0


def _cannot_start(reason: str) -> int:
    print(f"gex-bridge: cannot start: {reason}", file=sys.stderr)
    return 1


def _wrong_setting(problem: config.ConfigError) -> int:
    print(f"gex-bridge: {problem}", file=sys.stderr)
    return 2


def _raise_file_limit() -> None:
    """Room for MAX_CONNECTIONS: the usual soft limit is 1024 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(argv: list[str] | None = None) -> int:
    """`run_server.py`: the original's command line."""
    parser = argparse.ArgumentParser(
        description="Run local GEXBot bridge server", epilog=config.environment_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config.add_flags(parser)
    parser.add_argument("--version", action="version", version=f"gex-bridge {__version__}")
    args = parser.parse_args(argv)
    try:
        settings = config.load(args)
    except config.ConfigError as problem:
        return _wrong_setting(problem)
    return serve(settings)
