"""Two parties over folders: what they write, that it's what one process gives."""

from __future__ import annotations

from pathlib import Path

import parties as p
import pytest


@pytest.mark.parametrize("rounds", [1, 2])
def test_two_parties_give_what_one_process_gives(rounds: int, tmp_path: Path) -> None:
    two = p.parties(tmp_path, rounds=rounds)
    merged = two.run()
    assert p.same(merged, two.one_process(tmp_path / "one"))
