"""The report: which run is which cell, means and missing ones, and pages that stand alone."""

from __future__ import annotations

import json
import math
import re
import stat
from fnmatch import fnmatch
from pathlib import Path

import pytest

from paczo.report import tables as report_tables
from paczo.report.matching import is_cell
from paczo.report.page import Section, Table, as_html, as_markdown
from src.record.chain import RecordWriter
from src.utils import UserError
from tests.paczo.report_runs import ROWS, configuration, page, write_run


def test_a_run_of_every_cell_is_recognised_and_a_changed_one_is_not():
    for cell in ROWS.values():
        found = configuration(cell)
        assert is_cell(cell, found), cell["run_id"]
        unused = set() if cell["track"] == "lora" else {"lora_r", "lora_alpha", "lora_layers"}
        unused |= set() if cell["task"] == "SQuAD" else {"max_new_tokens"}
        unused |= set() if cell["method"] == "pac-mi" else {"pac_mi", "pac_charge"}
        unused |= set() if cell["method"] == "non-private" else {"ablation"}
        for name in found.keys() - unused:
            assert not is_cell(cell, {**found, name: "other"}), (cell["run_id"], name)


def test_table_1_shows_means_the_papers_figures_and_what_is_missing(tmp_path):
    for seed, score in ((0, 0.88), (1, 0.90), (2, 0.89)):
        write_run(tmp_path / "runs", f"sst2_1p3b_ft_paczpl_s{seed}", score)
    write_run(tmp_path / "runs", "squad_1p3b_lora_paczpl_s0", 0.5)
    write_run(tmp_path / "runs", "sst2_1p3b_lora_paczpl_s1", 0.7, learning_rate=0.5)
    text, web = page(tmp_path)
    assert "| SST2 opt-1.3b ft | pac-zpl | 89.00 ± 1.00 | 3 of 3 | 88.99 ± 0.91 |" in text
    missing, folded = text.split("<details>")[0], text.split("<summary>Missing: ")[1]
    assert "pac-mi 0.33" not in missing
    row = "| SST2 opt-1.3b ft | pac-mi 0.33 | 4 of 4 | `bash scripts/run_cells.sh 'sst2_1p3b_ft_pacmi_mi033_s*'` |"
    assert row in folded
    assert folded.startswith("139 of the paper's 143 cells")
    assert "| SQuAD opt-1.3b lora | pac-zpl | 50.00 | 1 of 1 | not known |" in text
    assert "| SST2 opt-1.3b lora | pac-zpl | 3 of 3 | " in folded
    others = text.split("## Runs with other settings")[1].split("<details>")[0]
    row = "| sst2_1p3b_lora_paczpl_s1 | SST2 opt-1.3b lora | pac-zpl | 0.5 | 4 | 70.00 | 0.5000 | 0.75 |"
    assert row in others
    assert "sst2_1p3b_ft_paczpl_s0" not in others
    assert "<td>89.00 ± 1.00</td>" in web


def test_equal_attack_success_stands_in_one_row(tmp_path):
    write_run(tmp_path / "runs", "plateau_sst2_1p3b_ft_mi0p33_s0", 0.9)
    write_run(tmp_path / "runs", "dpzero_sst2_1p3b_ft_eps2p0_K1_T20k", 0.6)
    write_run(tmp_path / "runs", "dpaggzo_sst2_1p3b_ft_eps2p0_K64_T1000", 0.8)
    text, web = page(tmp_path)
    table = text.split("## Table 3")[1].split("##")[0]
    row = next(line for line in table.splitlines() if line.startswith("| 0.8819 | 2.01 |"))
    assert "0.33 nats: 90.00 (1 of 5)" in row
    assert "epsilon 2.0, T=20000: 60.00 (1 of 1)" in row
    assert "epsilon 2.0, T=1000: 80.00 (1 of 1)" in row
    assert "| 0.9982 | 6.32 |" in text, "the epsilon of the largest success, not of a rounded one"
    assert web.count("<svg") == 3, "the overview, the plateau and Table 3 are drawn"


def test_reproducible_secrets_are_said_beside_a_score(tmp_path):
    secrets = "reproducible secrets, not private"
    write_run(tmp_path / "runs", "sst2_1p3b_ft_paczpl_s0", 0.88, secrets=secrets)
    text, _ = page(tmp_path)
    assert "| SST2 opt-1.3b ft | pac-zpl | 88.00 | 1 of 3, reproducible secrets | 88.99 ± 0.91 |" in text


def test_the_page_stands_alone(tmp_path):
    for number, run_id in enumerate(ROWS):
        write_run(tmp_path / "runs", run_id, 0.5 + number / 1000)
    measured = {
        "before": [0.5, 0.6],
        "num_train": 1000,
        "rows": [
            {
                "method": "DPZero eps 2",
                "learning_rate": 1e-3,
                "tuning": {"0.001": 0.9},
                "accuracy": [0.9, 0.8],
                "evaluations": 200000,
            }
        ],
    }
    (tmp_path / "published").mkdir()
    (tmp_path / "published/learning_table.json").write_text(json.dumps(measured))
    text, web = page(tmp_path)
    assert web.count("<svg") == 10, (
        "the overview, every table with numbers on an axis is drawn, and the learning task"
    )
    for curve in ("opt-6.7b lora, 0.68 nats", "opt-1.3b ft, clip 1e9", "dp-aggzo, T=2000"):
        assert f">{curve}</text>" in web, "a mean is over seeds, not over settings"
    for outside in ("<script", "<link", "src=", "url(http"):
        assert outside not in web
    assert "scripts/run_cells.sh" not in text
    assert "143 finished runs; 143 of the paper's 143 cells." in text
    assert "| DPZero eps 2 | 85.0 ± 7.1 | 2 | 200,000 | 0.001 | 0.001: 90.0 |" in text
    assert page(tmp_path)[0] == text


def test_private_ledgers_only_when_asked(tmp_path):
    folder = write_run(tmp_path / "runs", "sst2_1p3b_ft_pacmi_mi033_s0", 0.9)
    writer = RecordWriter(folder / "private/ledger.jsonl", {"secret": 3})
    for step in range(5):
        release = {"kind": "noisy" if step % 2 else "unanimous", "noise_std": 31.25 if step % 2 else None}
        writer.append({"step": step, "spent_nats": step / 10, "releases": [release]})
    writer.close()
    page(tmp_path)
    assert not (tmp_path / "report/private.html").exists()
    page(tmp_path, "--private")
    private = tmp_path / "report/private.html"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "spent nats" in private.read_text()
    assert "Do not publish" in private.read_text()
    assert "spent nats" not in (tmp_path / "report/report.html").read_text()


def test_an_empty_project_has_a_report_of_missing_cells(tmp_path):
    text, web = page(tmp_path)
    shown, folded = text.split("<details>", 1)
    assert "0 finished runs; 0 of the paper's 143 cells." in shown
    assert "|" not in shown
    assert "<summary>Missing: 143 of the paper's 143 cells</summary>" in folded
    commands = re.findall(r"`(bash|python|DATA_DIR)[^`]*`", folded)
    assert len(commands) > 90
    assert "<svg" not in web
    assert web.count("<details>") == 1
    assert "<details open" not in web


def test_what_ran_stands_before_what_is_missing_and_numbers_are_in_order(tmp_path):
    for name in ("kabl_sst2_1p3b_ft_K16_s0", "kabl_sst2_1p3b_ft_K4_s0"):
        write_run(tmp_path / "runs", name, 0.8)
    text, web = page(tmp_path)
    titles = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert titles == ["Best score against the bound on an attack", "Privacy of each run", "Directions a step, K"]
    assert "| 4 | 80.00 | 1 of 1 |\n| SST2 opt-1.3b ft | 16 | 80.00 | 1 of 1 |" in text
    folded = text.split("<summary>Missing: ")[1]
    for one, other in (("| 4 |", "| 16 |"), ("| 8 | 1 of 1 ", "| 16 | 1 of 1 "), ("| 1000 |", "| 5000 |")):
        assert 0 < folded.index(one) < folded.rindex(other)
    ranks = re.findall(r"\| (\d+) \| 1 of 1 \| `bash scripts/ablation/rankabl", folded)
    assert ranks == ["4", "8", "16"]
    assert web.index("Directions a step, K") < web.index("<summary>Missing")


def test_every_command_that_is_named_is_there_and_runs_nothing_else(tmp_path):
    write_run(tmp_path / "runs", "sst2_1p3b_ft_paczpl_s1", 0.5)
    commands = re.findall(r"`(bash [^`]*)`", page(tmp_path)[0])
    covered = []
    for command in commands:
        for words in command.split(" && "):
            if words.startswith("bash scripts/run_cells.sh"):
                pattern = words.split("'")[1]
                covered += [name for name in ROWS if fnmatch(name, pattern)]
            else:
                path = Path(words.removeprefix("bash ").split()[0])
                assert path.is_file()
                covered.append(path.stem)
    assert set(covered) == {*ROWS, "audit"}, "a pattern may be of finished cells too, which are skipped"
    assert "bash scripts/run_cells.sh 'sst2_1p3b_ft_paczpl_s*'" in commands


def test_the_overview_has_the_best_at_each_bound_and_the_papers_figure(tmp_path):
    for seed, score in ((0, 0.88), (1, 0.90), (2, math.nan)):
        write_run(tmp_path / "runs", f"sst2_1p3b_ft_paczpl_s{seed}", score, max_steps=1 + seed)
    write_run(tmp_path / "runs", "zplladder_sst2_1p3b_ft_noclip_T1000_s0", 0.99, smoke=True)
    table = page(tmp_path)[0].split("## Best score")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| SST2")]
    assert rows == [
        "| SST2 opt-1.3b ft | 0.5000 | 90.00 | 1 | 88.99 (pac-zpl) | pac-zpl: sst2_1p3b_ft_paczpl_s1 |"
    ]


def test_learning_curves_are_on_the_page_also_of_runs_that_have_not_ended(tmp_path):
    path = write_run(tmp_path / "runs", "sst2_1p3b_ft_paczpl_s0", 0.9) / "metrics.json"
    evaluated = {"evaluations": [{"step": 2, "eval_loss": 0.5}, {"step": 2, "eval_loss": 0.4}], "best_step": 2}
    path.write_text(json.dumps({**json.loads(path.read_text()), **evaluated}))
    state = tmp_path / "runs/sst2_1p3b_ft_paczpl_s1/checkpoints/checkpoint-2/trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"log_history": [{"step": 2, "eval_loss": 0.7}]}))
    text, web = page(tmp_path)
    assert "1 finished runs, 1 not finished; 1 of" in text
    assert ">sst2_1p3b_ft_paczpl, 1 not finished (2 runs)</text>" in web
    assert "forward passes</text>" in page(tmp_path, "--against", "passes")[1]
    assert "standard error" in page(tmp_path, "--bands", "error")[1]
    only = page(tmp_path, "--runs", str(tmp_path / "runs/*s1"))[0]
    assert "0 finished runs, 1 not finished" in only


def test_bounds_of_each_run_and_exact_posteriors_for_the_owner_alone(tmp_path):
    folder = write_run(tmp_path / "runs", "sst2_1p3b_ft_pacmi_mi033_s0", 0.9)
    metrics = json.loads((folder / "metrics.json").read_text())
    bounds = {
        "posterior_success_bound": 0.88,
        "tpr_bounds": {"0": 0.25, "0.001": 0.3},
        "naming_success_bound": 0.1,
    }
    metrics["privacy"] |= {**bounds, "budget_nats": 0.33, "prior_success": 0.5}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "private").mkdir()
    attack = {"member": {"mean_posterior": 0.75, "right": 0.625}, "naming": {"posterior": 0.0312, "right": 0.0}}
    (folder / "private/attack.json").write_text(json.dumps(attack))
    text, web = page(tmp_path, "--private")
    assert "| 0.33 | 0.8800 | 0.5000 | 0.2500 | 0.3000 | 0.1000 |" in text
    private = (tmp_path / "report/private.html").read_text()
    assert "<td>0.7500</td><td>0.6250</td><td>0.0312</td><td>0.0000</td>" in private
    assert "0.6250" not in text + web
    (folder / "private/attack.json").write_text('{"member": {}}')
    with pytest.raises(UserError, match=r"attack\.json is not a run's exact attack"):
        page(tmp_path, "--private")


def test_a_runs_name_stays_text(tmp_path):
    path = write_run(tmp_path / "runs", "sst2_1p3b_ft_paczpl_s0", 0.9)
    state = path / "checkpoints/checkpoint-2/trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"log_history": [{"step": 2, "unanimous": 0.7}]}))
    path.rename(path.with_name("<img src=x onerror=alert(1)>$&"))
    text, web = page(tmp_path)
    assert "<img" not in text + web
    assert "&lt;img src=x onerror=alert(1)>$&" in text
    assert web.count("&lt;img src=x onerror=alert(1)&gt;$&amp;") >= 4, "in three tables and a drawing"


def test_runs_without_scores_and_flat_files_are_passed_over(tmp_path):
    path = write_run(tmp_path / "runs", "sst2_1p3b_ft_paczpl_s0", 0.5) / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "after": {"dev": {}, "test": {}}}))
    (tmp_path / "runs/flat").mkdir()
    (tmp_path / "runs/flat/metrics.json").write_text('{"accuracy": 0.5, "dev_accuracy": 0.5}')
    text, _ = page(tmp_path)
    assert "sst2_1p3b_ft_paczpl_s0" not in text
    assert "| flat |" not in text


def test_other_runs_say_their_track_and_that_they_trained_on_the_dev_set(tmp_path):
    path = write_run(tmp_path / "runs", "sst2_1p3b_ft_paczpl_s0", 0.5, train_on="dev", prefix_tuning=True)
    metrics = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps({**metrics, "label": "trained on the public dev set"}))
    others = page(tmp_path)[0].split("## Runs with other settings")[1]
    assert "| SST2 opt-1.3b prefix | pac-zpl, trained on the public dev set |" in others


def test_a_damaged_run_is_left_out_and_named(tmp_path, capsys):
    write_run(tmp_path / "runs", "sst2_1p3b_ft_paczpl_s1", 0.75)
    path = write_run(tmp_path / "runs", "sst2_1p3b_ft_paczpl_s0", 0.5) / "metrics.json"
    started = '{"after": {"test": {"accuracy": 0.5}}}'
    for damaged in ("{}", '{"after": {"test"', "[1]", started, '{"after": 3}', "\xff"):
        path.write_text(damaged, encoding="latin-1")
        text, _ = page(tmp_path)
        assert re.search(rf"^\| {path} \| not a run's metrics: ", text, re.MULTILINE)
        assert "1 finished runs; " in text
        assert re.fullmatch(rf"warning: {path} is left out: .+\n", capsys.readouterr().err)


def test_damaged_tables_are_one_line(tmp_path):
    (tmp_path / "published").mkdir()
    (tmp_path / "published/a.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        page(tmp_path)


def test_tables_escape_what_is_not_theirs():
    table = Table(("a", "b"), [("<b>|", "x '<y>'")], commands=True)
    assert "<tr><td>&lt;b&gt;|</td><td><code>x &#x27;&lt;y&gt;&#x27;</code></td></tr>" in table.html()
    assert table.markdown().endswith("| &lt;b>\\| | `x '<y>'` |")
    nested = Section("<i>", parts=[Section("empty"), Section("full", "<u>", table)], folded=True)
    assert "<summary>&lt;i></summary>" in as_markdown([nested], "")
    assert "<summary>&lt;i&gt;</summary><h3>full</h3><p>&lt;u&gt;</p>" in as_html([nested], "")
    assert report_tables.unanimity({"privacy": {"releases": {"gaussian": 3}}}) is None
    assert report_tables.score({"after": {"test": {"f1": 0.25}}}) == 25.0


def test_the_universe_audit_stands_with_its_curves(tmp_path):
    row = {
        "auc": [0.6, 0.5, 0.7],
        "tpr": {"0.01": [0.02, 0.01, 0.03]},
        "epsilon": 0.21,
        "accuracy": [0.9, 0.8, 1.0],
    }
    rows = [{**row, "row": f"method {at}", "roc": [0.0, 0.1 * at, 1.0]} for at in range(9)]
    (tmp_path / "published").mkdir()
    (tmp_path / "published/universe_audit.json").write_text(json.dumps({"universe": rows}))
    text, web = page(tmp_path)
    head = "| method | AUC (95 %) | true positives at 1% false | epsilon at least | accuracy |"
    assert f"{head}\n| --- | --- | --- | --- | --- |\n| method 0 | 0.600 (0.500 to 0.700) |" in text
    assert "| method 8 | 0.600 (0.500 to 0.700) | 0.020 (0.010 to 0.030) | 0.21 | 90.0 % |" in text
    (part,) = re.findall(r"<h2>Who was among the N\?</h2>.*?(?=<h2|<details|$)", web, re.DOTALL)
    assert [drawing.count(": AUC 0.600") for drawing in part.split("<svg")[1:]] == [8, 1]
    assert "universe --out" not in text, "what has been measured is not missing"
