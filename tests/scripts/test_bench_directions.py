"""The benchmarks of directions and of precision, at tiny shapes."""

from __future__ import annotations

import json

import pytest
from builders import save_model

from scripts import bench_directions, bench_precision, readme_tables
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


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (bench_directions.main, ["--model", "opt-9b"], "unknown model, track or dtype; use --model tiny"),
        (bench_directions.main, ["--model", "tiny", "--k", "0"], "each k must be at least 1"),
        (bench_directions.main, ["--model", "smollm2-135m"], "set DATA_DIR"),
        (bench_precision.main, ["--dtypes", "int8"], "--dtypes takes float32"),
        (bench_precision.main, [], "set DATA_DIR"),
    ],
)
def test_wrong_words_are_one_line(main, words, message):
    with pytest.raises(UserError, match=message):
        main(words)
