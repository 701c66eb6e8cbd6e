"""The private record by itself: what a process that dies between two writes leaves is taken, again and again."""

from __future__ import annotations

import json

import pytest

from paczo.ledger import Ledger, read_ledger
from src.record.chain import RecordError, RecordWriter, link, load_records

HEAD = {"format": 2}


def begin(folder):
    ledger = Ledger(folder / "private", {"transcript": link("", HEAD)})
    transcript = RecordWriter(folder / "transcript.jsonl", HEAD)
    ledger.seal(transcript.chain)
    return ledger, transcript


def resume(folder):
    public = load_records(folder / "transcript.jsonl")
    content = read_ledger(folder / "private", public)
    return Ledger.resume(content), RecordWriter.resume(public), content


def write(ledger, transcript, step, *, until):
    """A step's writes, of which the process lives to see the first `until`."""
    line = {"step": step, "coefficients": [1.0]}
    writes = (lambda: ledger.append(line), lambda: transcript.append(line), lambda: ledger.seal(transcript.chain))
    for make in writes[:until]:
        make()
    ledger.close()
    transcript.close()


def test_a_run_may_die_between_the_same_two_writes_each_time(tmp_path):
    """In front of the head, in several steps one after the other: each life writes what the last one could not."""
    write(*begin(tmp_path), 0, until=2)
    for step in range(1, 6):
        ledger, transcript, content = resume(tmp_path)
        assert len(content.steps) == step
        write(ledger, transcript, step, until=2)
        assert json.loads((tmp_path / "private" / "head.json").read_text())["lines"] == 1 + step
    ledger, transcript, _ = resume(tmp_path)
    write(ledger, transcript, 6, until=1)
    ledger, transcript, content = resume(tmp_path)
    assert len(content.steps) == 7
    assert content.transcript_chain is None, "the transcript is a line behind, and the head with it"
    assert json.loads((tmp_path / "private" / "head.json").read_text())["lines"] == 7


@pytest.mark.parametrize("removed", [1, 2])
def test_lines_that_were_complete_are_missed(removed, tmp_path):
    write(*begin(tmp_path), 0, until=3)
    for step in (1, 2):
        ledger, transcript, _ = resume(tmp_path)
        write(ledger, transcript, step, until=3)
    for path in (tmp_path / "transcript.jsonl", tmp_path / "private" / "ledger.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-removed]))
    with pytest.raises(RecordError, match="lines were removed"):
        resume(tmp_path)
