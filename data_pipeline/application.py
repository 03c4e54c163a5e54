"""`Application`: every part, built from the settings, started and stopped in order; signals."""

import json
import logging
import os
import resource
import signal
import threading
import time
from typing import Any

from data_pipeline import BridgeError, config
from data_pipeline.board import BoardRestore, PastDays
from data_pipeline.bridge import Bridge
from data_pipeline.files import atomic
from data_pipeline.history.command import DownloadRunner, Template
from data_pipeline.http_server.access import Access
from data_pipeline.http_server.api import Api
from data_pipeline.http_server.connection import Limits
from data_pipeline.http_server.pages import Pages
from data_pipeline.http_server.server import BridgeServer
from data_pipeline.integrations.dashboard import Dashboard
from data_pipeline.integrations.discord import Discord
from data_pipeline.integrations.gexbot import GexBotClient, Poller, StatusRefresher
from data_pipeline.operations import logs
from data_pipeline.operations.watchdog import Watchdog
from data_pipeline.repository.repository import Repository

log = logging.getLogger("webhook")


FILES_WANTED = 65536  # descriptors


class Application:
    """Every part of the server, built from the settings and handed what it needs."""

    def __init__(self, settings: config.Settings):
        self.settings = settings
        self.repository = Repository(settings)
        self.repository.on_lost = lambda: os.kill(os.getpid(), signal.SIGTERM)
        self.discord = Discord(
            settings.discord_bot_token,
            settings.alt_channel_option_trades or settings.discord_channel_id,
            settings.discord_dm_user_id,
            settings.discord_api_url,
        )
        self.downloads = self._downloads()
        self.dashboard = Dashboard(settings.dashboard_url)
        self.bridge = Bridge(
            self.repository,
            self.dashboard,
            self.downloads,
            self.discord,
            settings.uw_frames,
            settings.max_tickers,
        )
        self.gexbot = GexBotClient(settings.gexbot_api_key, settings.gexbot_api_url)
        self.poller = Poller(
            self.gexbot,
            settings.poll_interval,
            self._deliver,
            settings.gexbot_symbols,
            settings.gexbot_categories,
            whole=settings.values == "own",
            rth=settings.poll_hours == "rth",
        )
        self.refresher = StatusRefresher(self.gexbot, settings.gex_status_symbols, settings.folder.views)
        limits = Limits(settings.max_body_bytes, settings.head_timeout, settings.body_timeout)
        self.server = BridgeServer(
            (settings.host, settings.port),
            self.bridge,
            Pages(settings, self.repository, self.bridge, self.stats),
            settings.http_workers,
            settings.max_connections,
            limits,
            Api(self.bridge.board, PastDays(settings.data_dir), time.time),
            Access(settings.host, settings.api_token),
        )
        self.board_restore = BoardRestore(self.bridge.board, settings.data_dir, self._files_caught_up)
        self.watchdog = Watchdog(self.server.server_address, self.repository.stats)

    def _downloads(self) -> DownloadRunner | None:
        """Raises ConfigError for a command in which a value would not be safe."""
        if not self.settings.history_download_command:
            return None
        return DownloadRunner(Template.parse(self.settings.history_download_command), self.settings.root)

    def start(self) -> None:
        """Take the data folder, bring the store back, answer.  Raises BridgeError, OSError, RuntimeError."""
        self.repository.open()
        self.bridge.restore(self.settings.data_dir)
        self.server.start()
        log.info("Starting GEX bridge on %s:%d", self.settings.host, self.server.port)
        self.board_restore.start()
        self.repository.start()
        self.discord.start()
        if self.downloads is not None:
            self.downloads.start()
        self.poller.start()
        if self.settings.gex_status_symbols:
            atomic.clean(self.settings.folder.views, "*_gex_status.json.*")
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
        self.board_restore.stop(0)
        answered = self.server.stop(patience / 4)
        if self.downloads is not None:
            self.downloads.stop(patience / 4)
        self.discord.stop(patience / 4)
        flushed = self.repository.stop(max(0.2, until - time.monotonic()))
        self.gexbot.close()
        return answered and flushed

    def _files_caught_up(self) -> bool:
        """Whether the growing files have all that was in the journal when it was opened."""
        position = self.repository.stats().get("files", {}).get("position", 0)
        return bool(position >= self.repository.journal.opened_at)

    def stats(self) -> dict[str, Any]:
        """What every part counts; see README, `/status`."""
        return {
            "requests": self.server.counts(),
            "server": self.server.stats(),
            **self.repository.stats(),
            "discord": self.discord.stats(),
            "poller": self.poller.stats(),
            "refresher": self.refresher.stats(),
            "downloads": self.downloads.stats() if self.downloads is not None else {},
            "dashboard": self.dashboard.stats(),
            "log": {"dropped": logs.dropped()},
            "board": self.bridge.board.stats(),
        }

    def _deliver(self, payload: dict[str, Any]) -> None:
        """What the poller fetched comes in as any webhook does."""
        self.bridge.universal(json.dumps(payload).encode(), payload, "127.0.0.1", "GEXBotPoller")


class CannotStart(BridgeError):
    """The system does not give what the server needs: its address, a file, a thread."""


def serve(settings: config.Settings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code.  A second signal ends it at once.

    SIGHUP, which a terminal that closes sends, ends nothing.  Raises
    BridgeError where it cannot start.
    """
    _open_standard_streams()
    logs.configure(settings.level, settings.log_json)
    _raise_file_limit()
    stopping = threading.Event()
    # The system may hand a signal to any thread; Python only takes note then, and a wait in this one would go on.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def on_signal(number: int, frame: object) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        application = Application(settings)
        application.start()
    except OSError as problem:
        at = problem.filename or f"{settings.host}:{settings.port}"
        raise CannotStart(f"cannot start: {at}: {problem.strerror or problem}") from problem
    except RuntimeError as problem:  # no thread to be had
        raise CannotStart(f"cannot start: {problem}") from problem
    while not stopping.is_set():
        if os.read(wake_read, 1) == bytes([signal.SIGHUP]):
            log.info("SIGHUP is ignored; SIGTERM ends the bridge")
    log.info("Stopping GEX bridge")
    if not application.stop():
        log.warning("not everything was flushed in time; it is in the journal and is done at the next start")
    return 1 if application.repository.lost else 0


def _open_standard_streams() -> None:
    """Where one was closed at the start, the next file to be opened, a journal say, would take its place."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _raise_file_limit() -> None:
    """Room for MAX_CONNECTIONS: the usual soft limit is 1024 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
