"""The benchmarks of directions, precision, generation and processes, at tiny shapes."""

from __future__ import annotations

import json

import pytest
from builders import save_model

from scripts import (
    bench_directions,
    bench_generation,
    bench_parties,
    bench_precision,
    bench_processes,
    bench_tracks,
    readme_tables,
)
from src.utils import UserError


def test_directions_are_timed_and_the_record_has_its_line(tmp_path, capsys):
    words = ["--model", "tiny", "--n", "4", "--k", "1", "3", "--repeats", "1", "--lora_layers", "last:1"]
    bench_directions.main([*words, "--output_dir", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    assert path.stem.startswith("directions-tiny-lora-last1-float32-n4-")
    figures = json.loads(path.read_text())
    assert set(figures["median"]) == {"floor", "central", "exact 1", "exact 3"}
    assert min(figures["median"].values()) > 0
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["median"] == figures["median"]
    table = readme_tables.directions({path.stem: figures})
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| tiny, LoRA last:1, float32")]
    assert [row[1] for row in rows] == ["1", "3"]
    share = figures["utilisation"]["exact 3"]
    wanted = figures["median"]["floor"] / figures["median"]["exact 3"] * 2
    rate = share["model_flops_per_second"] / figures["utilisation"]["floor"]["model_flops_per_second"]
    assert rate == pytest.approx(wanted)
    assert f"{share['share']:.1%}" not in table  # a kept front makes a step less than its passes
    whole = {**figures, "arguments": {**figures["arguments"], "lora_layers": "all"}}
    assert f"| {share['share']:.1%} |" in readme_tables.directions({path.stem: whole})
    ratio = 3 * figures["median"]["central"] / figures["median"]["exact 3"]
    assert float(rows[1][5]) == pytest.approx(ratio, abs=0.06)
    assert "exact K=3" in capsys.readouterr().out


def test_precision_compares_with_float64_and_trains(tmp_path, monkeypatch):
    rows = [{"sentence": f"a very {word} film", "label": label} for word, label in (("good", 1), ("bad", 0))] * 4
    (tmp_path / "sst2").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "sst2" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--model", save_model(tmp_path / "model"), "--n", "6", "--k", "2", "--dtypes", "float32", "bfloat16"]
    monkeypatch.setattr(bench_precision, "learning", lambda args, dtype: [])
    bench_precision.main([*words, "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    (path,) = (tmp_path / "out").glob("*.json")
    found = {(row["dtype"], row["derivative"]): row for row in json.loads(path.read_text())["precision"]}
    assert len(found) == 6
    assert found["float32", "exact"]["error"] < 1e-4 < found["bfloat16", "exact"]["error"] < 0.2
    assert found["bfloat16", "eps 0.001"]["error"] > found["bfloat16", "exact"]["error"]
    assert min(found["float32", "eps 0.001"]["correlation"]) > 0.99
    table = readme_tables.precision({"a": json.loads(path.read_text())})
    assert table.count("| bfloat16 | ") == 3


def test_tracks_are_measured_and_small(tmp_path):
    rows = [{"sentence": f"a very {word} film", "label": label} for word, label in (("good", 1), ("bad", 0))] * 4
    (tmp_path / "sst2").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "sst2" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--model", save_model(tmp_path / "model"), "--n", "6", "--repeats", "1", "--data_dir", str(tmp_path)]
    bench_tracks.main([*words, "--output_dir", str(tmp_path / "out")])
    (path,) = (tmp_path / "out").glob("*.json")
    figures = json.loads(path.read_text())
    found = {row["track"]: row for row in figures["tracks"]}
    trained = {"full": figures["parameters"], "lora": 2 * 2 * 8 * 64, "prefix": 2 * 2 * 5 * 32, "head": 2 * 32}
    assert {name: row["trained"] for name, row in found.items()} == trained
    for row in found.values():
        assert row["snapshot_bytes"] == 4 * row["trained"] <= row["saved_bytes"] < 4 * row["trained"] + 4000
        assert min(row["median"].values()) > 0
    table = readme_tables.tracks({path.stem: figures})
    assert table.count(", float32, ") == 4


def test_generation_of_a_shape_has_as_many_prompts_as_are_asked_for(tmp_path):
    words = ["--model", "tiny", "--n", "5", "--max_new_tokens", "3", "--data_dir", str(tmp_path)]
    row = {"title": "Rivers", "context": "The Rhine is long.", "question": "What is long?", "id": "1"}
    row["answers"] = {"text": ["The Rhine"], "answer_start": [0]}
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad/validation.jsonl").write_text(json.dumps(row) + "\n")
    bench_generation.main([*words, "--output_dir", str(tmp_path / "out")])
    (path,) = (tmp_path / "out").glob("*.json")
    figures = json.loads(path.read_text())
    assert (figures["questions"], figures["identical_answers"], figures["arguments"]["model"]) == (5, 5, "tiny")


def test_a_row_of_several_processes():
    figures = {
        "arguments": {"shape": "tiny", "dtype": "float16"},
        "processes": 4,
        "median": {"1 processes": 0.4, "4 processes": 0.0125},
        "same_bits": 39,
        "bits": 40,
        "device": "a GPU",
        "threads": 1,
        "date": "2026-01-01",
        "versions": {"torch": "2", "transformers": "5"},
    }
    row = readme_tables.processes({"a": figures}).splitlines()[2]
    assert row == "| tiny, float16, 4 processes | 0.40 s | 12.5 ms | 32.00 | 39 of 40 |"


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (bench_directions.main, ["--model", "opt-9b"], "unknown model, track or dtype; use --model tiny"),
        (bench_directions.main, ["--model", "tiny", "--k", "0"], "each k must be at least 1"),
        (bench_directions.main, ["--model", "smollm2-135m"], "set DATA_DIR"),
        (bench_precision.main, ["--dtypes", "int8"], "--dtypes takes float32"),
        (bench_precision.main, [], "set DATA_DIR"),
        (bench_generation.main, ["--dtype", "int8"], "--dtype takes float32"),
        (bench_generation.main, ["--model", "tiny"], "set DATA_DIR"),
        (bench_tracks.main, ["--dtype", "int8"], "--dtype takes float32"),
        (bench_tracks.main, [], "set DATA_DIR"),
        (bench_processes.main, ["--shape", "opt-9b"], "unknown shape or dtype"),
        (bench_processes.main, ["--processes", "1"], "processes must be at least 2"),
        (bench_parties.main, ["--what", "memory", "size"], "unknown measurement 'size'"),
        (bench_parties.main, ["--steps", "0"], "steps must be at least 1"),
    ],
)
def test_wrong_words_are_one_line(main, words, message):
    with pytest.raises(UserError, match=message):
        main(words)


def test_a_commands_peak_is_its_own():
    """Of a process and of one that it starts; a failure is its last line."""
    block = "import sys, time; b = b'x' * (100 << 20); time.sleep(0.5)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {block!r}])"
    peaks = [bench_parties.command(["-c", code])[1] for code in ("pass", block, child)]
    assert peaks[0] < 60
    assert all(95 < peak - peaks[0] < 110 for peak in peaks[1:])
    with pytest.raises(UserError, match="failed: NameError"):
        bench_parties.command(["-c", "unknown"])
