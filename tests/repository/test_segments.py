import itertools
import json

import pytest

from data_pipeline.repository import segments
from data_pipeline.repository.journal import find_end
from data_pipeline.repository.segments import Damage, Reader, Record, SegmentHeader
from tests.helpers.support import journal_record

ID = "0123456789abcdef" * 2
PAYLOADS = [json.dumps({"n": n, "text": "é" * n}, ensure_ascii=False).encode() for n in range(1, 4)]


def segment(folder, first, records, last_link=0):
    """Write a segment as the journal does; records: (number, payload)."""
    path = segments.segment_path(folder, first)
    path.write_bytes(SegmentHeader(ID, first, last_link).encode() + b"".join(journal_record(*r) for r in records))
    return path


def read_all(folder, upto, after=0, **limits):
    """Everything up to a number, as records and damage, until there is no more."""
    reader, found = Reader(folder, after), []
    while part := reader.read(upto, **limits):
        found += part
    return found


def records_of(found):
    return [part for part in found if isinstance(part, Record)]


def boundaries(payloads):
    """The offsets at which records begin, and the end."""
    sizes = [segments.RECORD.size + len(p) for p in payloads]
    return list(itertools.accumulate(sizes, initial=segments.HEADER_BYTES))


def test_what_was_written_is_read_in_order(tmp_path):
    segment(tmp_path, 1, [(1, b"one"), (2, b"")])
    segment(tmp_path, 3, [(3, "drei é".encode())])
    assert read_all(tmp_path, 3) == [Record(1, b"one"), Record(2, b""), Record(3, "drei é".encode())]
    assert read_all(tmp_path, 3, after=1) == [Record(2, b""), Record(3, "drei é".encode())]
    assert read_all(tmp_path, 3, after=3) == []


def test_nothing_behind_what_is_durable_is_shown(tmp_path):
    segment(tmp_path, 1, [(n, b"x") for n in range(1, 6)])
    reader = Reader(tmp_path, 0)
    for upto in range(6):
        assert [r.number for r in reader.read(upto)] == ([upto] if upto else [])
        assert reader.position == upto


@pytest.mark.parametrize("most, most_bytes", [(1, 1 << 30), (2, 1 << 30), (1000, 1), (1000, 25)])
def test_a_reader_goes_on_where_a_limit_stopped_it(tmp_path, most, most_bytes):
    for first in (1, 4, 7):
        segment(tmp_path, first, [(n, b"x" * 10) for n in range(first, first + 3)])
    found = read_all(tmp_path, 9, most=most, most_bytes=most_bytes)
    assert [r.number for r in found] == list(range(1, 10))


def test_records_larger_than_a_chunk_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "BUFFER", 64)
    payloads = [b"a" * 1000, b"b", b"c" * 64, b"d" * 63]
    segment(tmp_path, 1, list(enumerate(payloads, 1)))
    assert [r.payload for r in read_all(tmp_path, 4)] == payloads


def test_a_torn_tail_costs_the_torn_record_only_wherever_it_is_cut(tmp_path):
    path = segment(tmp_path, 1, list(enumerate(PAYLOADS, 1)))
    whole = path.read_bytes()
    starts = boundaries(PAYLOADS)
    for cut in range(segments.HEADER_BYTES, len(whole)):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in starts[1:])
        found = read_all(tmp_path, 3)
        assert [r.payload for r in records_of(found)] == PAYLOADS[:complete], cut
        damage = [part for part in found if isinstance(part, Damage)]
        torn = whole[starts[complete] : cut]
        assert [d.raw for d in damage] == ([torn] if torn else []), cut


def test_the_journal_goes_on_behind_a_torn_tail_under_numbers_never_used(tmp_path):
    path = segment(tmp_path, 1, list(enumerate(PAYLOADS, 1)), last_link=7)
    whole = path.read_bytes()
    starts = boundaries(PAYLOADS)
    for cut in range(segments.HEADER_BYTES, len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in starts[1:])
        journal, end, last_link = find_end(tmp_path)
        assert (journal, last_link) == (ID, 7)
        assert end >= complete + (cut not in starts), "the torn record's number is not given out again"
        following = segment(tmp_path, end + 1, [(end + 1, b"new")])
        found = records_of(read_all(tmp_path, end + 1))
        assert [r.payload for r in found] == [*PAYLOADS[:complete], b"new"], cut
        following.unlink()


def test_numbers_of_several_records_that_a_tail_may_have_had_are_not_used_again(tmp_path):
    path = segment(tmp_path, 1, [(n, b"") for n in range(1, 11)])
    raw = bytearray(path.read_bytes())
    raw[segments.HEADER_BYTES + 5 * segments.RECORD.size :: segments.RECORD.size] = b"\0" * 5
    path.write_bytes(raw)
    assert find_end(tmp_path)[1] >= 10


def test_a_flipped_byte_anywhere_costs_one_record_at_most_and_is_reported(tmp_path):
    path = segment(tmp_path, 1, list(enumerate(PAYLOADS, 1)), last_link=7)
    segment(tmp_path, 4, [(4, b"following")])
    whole = path.read_bytes()
    starts = boundaries(PAYLOADS)
    for offset in range(len(whole)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[offset] ^= flip
            path.write_bytes(damaged)
            found = read_all(tmp_path, 4)
            hit = sum(start <= offset for start in starts)
            kept = [r.number for r in records_of(found)]
            assert kept == [n for n in (1, 2, 3, 4) if n != hit], offset
            damage = [part for part in found if isinstance(part, Damage)]
            assert len(damage) == (hit > 0), offset
            if hit:
                assert damage[0].raw == bytes(damaged[starts[hit - 1] : starts[hit]])
                assert (damage[0].segment, damage[0].offset, damage[0].after) == (path.name, starts[hit - 1], hit - 1)


def test_a_flipped_byte_in_a_header_hides_nothing(tmp_path):
    path = segment(tmp_path, 1, [(1, b"one")], last_link=7)
    whole = path.read_bytes()
    for offset in range(segments.HEADER_BYTES):
        damaged = bytearray(whole)
        damaged[offset] ^= 0xFF
        path.write_bytes(damaged)
        assert segments.read_header(path) == SegmentHeader(ID, 1, 7)
        assert find_end(tmp_path) == (ID, 1, 7)


def test_without_any_header_the_records_stay_and_the_journal_gets_a_new_id(tmp_path, caplog):
    path = segment(tmp_path, 1, [(1, b"one")])
    path.write_bytes(b"\0" * segments.HEADER_BYTES + path.read_bytes()[segments.HEADER_BYTES :])
    journal, end, _ = find_end(tmp_path)
    assert journal != ID and end == 1
    assert "no header" in caplog.text
    assert read_all(tmp_path, 1) == [Record(1, b"one")]


def test_a_damaged_last_record_of_what_is_durable_takes_nothing_behind_it_with_it(tmp_path):
    path = segment(tmp_path, 1, list(enumerate(PAYLOADS, 1)))
    raw = bytearray(path.read_bytes())
    raw[boundaries(PAYLOADS)[1] + segments.RECORD.size] ^= 0xFF
    path.write_bytes(raw)
    reader = Reader(tmp_path, 0)
    assert [type(part) for part in reader.read(2)] == [Record, Damage]
    assert reader.read(3) == [Record(3, PAYLOADS[2])]


def test_a_reader_passes_what_is_lost_at_the_end(tmp_path):
    path = segment(tmp_path, 1, list(enumerate(PAYLOADS, 1)))
    path.write_bytes(path.read_bytes()[:-1])
    reader = Reader(tmp_path, 0)
    assert [type(part) for part in reader.read(3)] == [Record, Record, Damage]
    assert reader.position == 3
    assert reader.read(3) == []
    segment(tmp_path, 5, [(5, b"new")])
    assert reader.read(5) == [Record(5, b"new")]


def test_damage_across_two_records_is_one_place(tmp_path):
    path = segment(tmp_path, 1, list(enumerate(PAYLOADS, 1)))
    raw = bytearray(path.read_bytes())
    starts = boundaries(PAYLOADS)
    raw[starts[0] + 2 : starts[1] + 5] = b"\0" * (starts[1] + 3 - starts[0])
    path.write_bytes(raw)
    damage, last = read_all(tmp_path, 3)
    assert (damage.offset, len(damage.raw), damage.after) == (starts[0], starts[2] - starts[0], 0)
    assert last == Record(3, PAYLOADS[2])


def test_a_record_whose_number_is_in_the_next_segment_does_not_count(tmp_path):
    segment(tmp_path, 1, [(1, b"one"), (2, b"failed"), (3, b"failed too")])
    segment(tmp_path, 2, [(2, b"two"), (3, b"three")])
    assert read_all(tmp_path, 3) == [Record(1, b"one"), Record(2, b"two"), Record(3, b"three")]
    reader = Reader(tmp_path, 0)
    assert [r.payload for n in (1, 2, 3) for r in reader.read(n)] == [b"one", b"two", b"three"]


def test_a_lost_segment_costs_its_own_records_only(tmp_path):
    for first in (1, 3, 5):
        segment(tmp_path, first, [(first, b"x"), (first + 1, b"y")])
    segments.segment_path(tmp_path, 3).unlink()
    assert [r.number for r in read_all(tmp_path, 6)] == [1, 2, 5, 6]


def test_consumed_segments_go_and_the_newest_stays(tmp_path):
    paths = [segment(tmp_path, first, [(first, b"x"), (first + 1, b"y")]) for first in (1, 3, 5)]
    assert segments.remove_consumed(tmp_path, 1) == 0
    assert segments.remove_consumed(tmp_path, 2) == 1
    assert segments.list_segments(tmp_path) == paths[1:]
    assert segments.remove_consumed(tmp_path, 1000) == 1
    assert segments.list_segments(tmp_path) == paths[2:]
    assert find_end(tmp_path) == (ID, 6, 0)


def test_other_files_are_no_segments(tmp_path):
    for name in ("lock", "set-aside.jsonl", ".0000000000000001.journal.tmp~", "copy.journal", "x1.journal"):
        (tmp_path / name).write_bytes(b"")
    assert segments.list_segments(tmp_path) == []
    assert read_all(tmp_path, 10) == []


def test_a_long_record_is_read_once_and_a_damaged_length_asks_for_no_memory(tmp_path):
    path = segment(tmp_path, 1, [(1, b"x" * (13 << 20)), (2, b"two")])
    before = _bytes_read()
    assert [len(record.payload) for record in read_all(tmp_path, 2)] == [13 << 20, 3]
    assert _bytes_read() - before < 1.2 * path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(segments.HEADER_BYTES + 12)
        file.write(b"\xff\xff\xff\xff")
    damage, record = read_all(tmp_path, 2)
    assert len(damage.raw) == segments.RECORD.size + (13 << 20) and record == Record(2, b"two")


def _bytes_read() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
