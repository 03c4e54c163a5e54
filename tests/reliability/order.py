"""The order of system calls: no 2xx leaves before the fsync that covers its record, no descriptor of the server is ever
on the database once the writer runs, nor two of the writer, and no part of the journal goes before tables and files
have it on disk.

strace watches the real server and its writer under load, through a kill and a
clean stop; each acknowledgement is then looked up in what it wrote down.
"""

import json
import pathlib
import re

from tests.reliability.trace import Call, Trace, record

ROUNDS, SHORT = 2000, 60

NOTES = ("files.position", "depth.position")

_SERIAL = re.compile(rb'"serial": "\d+-\d+"')


def run(rounds: int, folder: pathlib.Path) -> str:
    """rounds: posts to be accepted in each of two lives."""
    traces, loads = record(folder, rounds)
    checked = sum(map(acknowledgements_follow_their_fsync, traces))
    acknowledged = sum(load.count for load in loads)
    assert checked >= acknowledged, f"only {checked} of {acknowledged} acknowledgements were found in the trace"
    for trace in traces:
        the_server_leaves_the_database_alone(trace)
    opened = sum(map(the_writer_has_one_descriptor_at_a_time, traces))
    gone = segments_go_last([call for trace in traces for call in trace.calls])
    assert gone, "no segment was removed; nothing is shown"
    return (
        f"{checked:,} acknowledgements, each behind the fsync of its record;"
        f" 0 descriptors of the server on the database,"
        f" never two of the writer in {opened:,} openings;"
        f" {gone} segments removed, each behind the fsyncs of tables and files"
    )


def is_acknowledgement(call: Call) -> bool:
    return call.name == "sendto" and bool(call.strings) and call.strings[0].startswith(b"HTTP/1.0 2")


def acknowledgements_follow_their_fsync(trace: Trace) -> int:
    """How many there were; AssertionError for one that came too early."""
    written: list[Call] = []
    synced: list[Call] = []
    requests: dict[int, bytes] = {}
    count = 0
    for call in trace.calls:
        if call.process != trace.server:
            continue
        if call.name == "accept4" and call.result >= 0:
            requests[call.result] = b""
        elif call.name == "recvfrom" and call.result > 0 and call.descriptor in requests:
            requests[call.descriptor] += call.strings[0]
        elif call.name == "write" and ".journal" in call.path:
            written.append(call)
        elif call.name in ("fsync", "fdatasync") and ".journal" in call.path and call.result == 0:
            synced.append(call)
        elif is_acknowledgement(call):
            count += 1
            _is_covered(call, requests[call.descriptor], written, synced)
    return count


def _is_covered(answer: Call, request: bytes, written: list[Call], synced: list[Call]) -> None:
    body = request.partition(b"\r\n\r\n")[2]
    mark = json.loads(body).get("url", "").encode() or body
    found = next((call for call in reversed(written) if mark in call.strings[0]), None)
    assert found, f"{body[:80]!r} was acknowledged and never written"
    assert found.result == len(found.strings[0]), "half a write was acknowledged"
    assert any(s.path == found.path and s.began > found.ended and s.ended < answer.began for s in reversed(synced)), (
        f"{body[:80]!r} was acknowledged before it was synced"
    )


def the_server_leaves_the_database_alone(trace: Trace) -> None:
    writer_began = next(
        c.began
        for c in trace.calls
        if c.name == "execve" and c.process != trace.server and b"data_pipeline.writer" in c.strings
    )
    for call in trace.calls:
        if call.process == trace.server and call.began > writer_began and call.name == "openat" and call.result >= 0:
            assert ".duckdb" not in call.path, f"the server opened {call.path}"


def the_writer_has_one_descriptor_at_a_time(trace: Trace) -> int:
    """How often the database was opened; closing a second descriptor would drop the lock of the first."""
    held: dict[int, set[int]] = {}
    count = 0
    for call in trace.calls:
        if call.name == "openat" and call.result >= 0 and call.path.endswith("gex_history.duckdb"):
            assert not held.get(call.process), "the database was opened twice in one process"
            held.setdefault(call.process, set()).add(call.result)
            count += 1
        elif call.name == "close" and call.process in held:
            held[call.process].discard(call.descriptor)
    return count


def segments_go_last(calls: list[Call]) -> int:
    """How many were removed; AssertionError for one with a webhook that was not committed, checkpointed and noted."""
    calls = [call for call in calls if call.result >= 0]
    serials: dict[str, set[bytes]] = {}
    committed: dict[bytes, int] = {}
    checkpoints: list[Call] = []
    notes: dict[str, Call] = {}
    gone = 0
    for call in calls:
        if call.name == "write" and call.path.endswith(".journal"):
            serials.setdefault(call.path, set()).update(_SERIAL.findall(call.strings[0]))
        elif call.name == "write" and call.path.endswith(".duckdb.wal"):
            committed.update(dict.fromkeys(_SERIAL.findall(call.strings[0]), call.ended))
        elif call.name == "fdatasync" and call.path.endswith(".duckdb"):
            checkpoints.append(call)
        elif call.name == "rename" and call.path.endswith(".position"):
            notes[pathlib.Path(call.path).name] = call
        elif call.name == "unlink" and call.path.endswith(".journal"):
            gone += 1
            for serial in serials[call.path]:
                assert serial in committed, f"{call.path} went before the database had {serial!r}"
                assert any(c.began > committed[serial] and c.ended < call.began for c in checkpoints), (
                    f"{call.path} went before a checkpoint"
                )
            last = max(c.ended for c in calls if c.name == "write" and c.path == call.path and c.ended < call.began)
            assert all(name in notes and notes[name].began > last for name in NOTES), (
                f"{call.path} went before the files had it"
            )
    return gone
