"""What a service tells systemd and learns from it; without systemd every function does nothing.

Protocols, from systemd's manual pages: sd_notify(3) for NOTIFY_SOCKET,
sd_watchdog_enabled(3) for WATCHDOG_USEC and WATCHDOG_PID, systemd.exec(5) for
JOURNAL_STREAM.
"""

import os
import socket
from typing import IO, Any


def notify(state: str) -> bool:
    """Send one state, such as READY=1, WATCHDOG=1, STOPPING=1 or STATUS=text; whether it was sent.

    Several go in one message, a line each.  Never raises: a service does not
    die because nobody listens.
    """
    if not is_there():
        return False
    address = os.environ["NOTIFY_SOCKET"]
    if address[0] == "@":  # Linux's abstract namespace: the name starts with a zero byte
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A full queue at the other end may not hold up the service.
            sender.settimeout(1.0)
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError:
        return False
    return True


def is_there() -> bool:
    """Whether somebody wants to be told."""
    return os.environ.get("NOTIFY_SOCKET", "")[:1] in ("/", "@")


def watchdog_interval() -> float | None:
    """Seconds within which WATCHDOG=1 is expected again; None where nobody watches this process."""
    for_pid = os.environ.get("WATCHDOG_PID")
    if for_pid and for_pid != str(os.getpid()):
        return None
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None


def under_journald(stream: IO[Any] | None) -> bool:
    """Whether what is written to `stream` goes straight to the journal: it reads priorities, and has times itself.

    The variable is inherited by children too, whose output may go elsewhere,
    so device and inode are compared.
    """
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno() if stream else -1)
    except (OSError, ValueError):  # closed, or a stream without a descriptor
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
