"""gex-bridge systemd-unit: a unit file for this installation, on standard output."""

import argparse
import os
import pathlib
import pwd
import sys

from data_pipeline import config

HELP = "print a systemd unit for this installation"

# In place of root, who should not run it.
SERVICE_USER = "gex-bridge"

# The watchdog wants a sign of life twice in this time; a full disk or a busy one must not look like a hang.
WATCHDOG_SECONDS = 60

# What systemd waits for beyond the server's own deadline before it kills.
STOP_MARGIN_SECONDS = 26

UNIT = """\
# Made by: gex-bridge systemd-unit
[Unit]
Description=GEX bridge
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
WorkingDirectory={root}
Environment={data_dir_setting}
User={user}
WatchdogSec={watchdog}
TimeoutStartSec=300
TimeoutStopSec={stop}
# SIGTERM to the server alone, which ends its own children in order; what is left after the timeout is killed.
KillMode=mixed
Restart=on-failure
RestartSec=2
# A setting that cannot be used stays wrong: do not try again.
RestartPreventExitStatus=2
LimitNOFILE=8192
# Others read the files.
UMask=0022

# The data folder is all it may write to.  For a download command that writes elsewhere, add in a drop-in:
# ReadWritePaths=/that/folder
ReadWritePaths={data_dir}
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
PrivateUsers=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
# Not MemoryDenyWriteExecute: polars makes a page executable when it starts, as do download commands in node or java.
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
# Back in: the process that writes the database makes itself nice, an import keeps to one core.
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallFilter=setpriority sched_setaffinity

[Install]
WantedBy=multi-user.target
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom it runs as, and the data folder."""
    parser.add_argument("--user", help=f"whom the service runs as (default: you, or {SERVICE_USER} for root)")
    config.add_flags(parser, only=("DATA_DIR",))


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Print it; what is left to be done goes to standard error."""
    you = pwd.getpwuid(os.getuid()).pw_name
    user = args.user or (SERVICE_USER if you == "root" else you)
    print(unit(settings, user), end="")
    if not settings.data_dir.is_dir() or user != you:
        print(f"gex-bridge systemd-unit: {settings.data_dir} must be there and belong to {user}", file=sys.stderr)
    return 0


def unit(settings: config.Settings, user: str, python: str = sys.executable) -> str:
    """The unit's text; paths are this installation's, absolute."""
    script = settings.root / "run_server.py"
    start = [python, str(script)] if script.is_file() else [python, "-P", "-m", "data_pipeline", "serve"]
    paths = [pathlib.Path(python), pathlib.Path(python).resolve(), settings.root, settings.data_dir]
    hidden = any(p.is_relative_to(home) for p in paths for home in ("/home", "/root", "/run/user"))
    return UNIT.format(
        command=" ".join(_quoted(word.replace("$", "$$")) for word in start),
        root=str(settings.root).replace("%", "%%"),
        data_dir=_quoted(str(settings.data_dir)),
        data_dir_setting=_quoted(f"DATA_DIR={settings.data_dir}"),
        user=user,
        watchdog=WATCHDOG_SECONDS,
        stop=round(settings.stop_timeout + STOP_MARGIN_SECONDS),
        protect_home="read-only" if hidden else "yes",
    )


def _quoted(word: str) -> str:
    """One word of a unit file, see systemd.syntax(7); % starts a specifier there."""
    word = word.replace("%", "%%")
    if word.isascii() and all(c.isalnum() or c in "%/._-=+:@$" for c in word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
