"""The table of zero-shot and in-context scores: one run a row and draw, none twice, a failure in one line."""

from __future__ import annotations

import json
import subprocess

import pytest

from scripts import icl_table
from src.utils import UserError


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Settings of the runs made; each scores its number of demonstrations."""
    made = []

    def run(words, env, **_):
        made.append((env["TASK"], env["NUM_TRAIN"], env["SFC"], env["SEED"]))
        if env["TASK"] == "SQuAD" and not (tmp_path / "squad").exists():
            return subprocess.CompletedProcess(words, 2, "", "a warning\nerror: no squad\n")
        folder = tmp_path / env["OUT_BASE"] / env["RUN_ID"]
        folder.mkdir(parents=True)
        scores = {"accuracy" if env["TASK"] == "SST2" else "f1": int(env["NUM_TRAIN"]) / 10}
        (folder / "metrics.json").write_text(json.dumps({"after": {"test": scores}}))
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(icl_table, "ROOT", tmp_path)
    monkeypatch.setattr(icl_table.subprocess, "run", run)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return made


def test_a_failed_run_is_named_and_what_ended_before_is_not_run_again(runs, tmp_path):
    words = ["--output_dir", str(tmp_path / "out"), "--work_dir", "work"]
    with pytest.raises(UserError, match=r"^SQuAD-0-plain-0: error: no squad$"):
        icl_table.main(words)
    assert not (tmp_path / "out").exists()
    first = list(runs)
    assert first.count(("SST2", "8", "", "2")) == 1
    assert len(first) == 2 * 1 + 2 * 3 + 1
    (tmp_path / "squad").touch()
    icl_table.main(words)
    assert runs[len(first) :] == [("SQuAD", "0", "", "0"), *[("SQuAD", "8", "", str(draw)) for draw in range(3)]]
    (path,) = (tmp_path / "out").iterdir()
    rows = json.loads(path.read_text())["in_context"]
    assert [(row["task"], row["shots"], row["calibration"]) for row in rows] == list(icl_table.ROWS)
    assert rows[2]["scores"] == [{"accuracy": 0.8}] * 3
    assert rows[4]["scores"] == [{"f1": 0.0}]


def test_real_rows_are_asked_for(monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    with pytest.raises(UserError, match="DATA_DIR"):
        icl_table.main([])
