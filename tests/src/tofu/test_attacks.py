"""The attacks on what was forgotten: rounding against rounding by hand, curves of known area, bad arguments."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import save_text_model
from pum_models import tiny
from scipy import stats

from pum.unlearn.tiny import train_tokenizer
from src.models import load_model
from src.tofu.attacked import FORMAT, METRICS, attack_rows, verdict
from src.tofu.attacks import forget_probabilities, main
from src.tofu.chat import chat_format
from src.tofu.prompts import encode_prompts, encode_rows
from src.tofu.quantize import levels, linear_weights, quantize_, undone_share
from src.tofu.relearn import area_between, known_and_others, lower_bound
from src.tofu.rows import SAMPLE_DATA, Row, load_split
from src.tofu.table import main as print_table
from src.utils import UserError


def by_hand(weight: list[list[float]], bits: int) -> list[list[float]]:
    """Every row to the nearest multiple of its own step, one number after the other."""
    rounded = []
    for row in weight:
        step = max(abs(value) for value in row) / (2 ** (bits - 1) - 1)
        rounded.append([round(value / step) * step if step else 0.0 for value in row])
    return rounded


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_rounding_is_that_by_hand(model_type: str, bits: int) -> None:
    """GPT-2's layers hold their weights transposed. Embeddings, norms and head stay."""
    before = tiny(model_type)
    model = copy.deepcopy(before)
    quantize_(model, bits)
    others = {name: weight for name, weight, _ in linear_weights(before)}
    for name, weight, out in linear_weights(model):
        rows, result = (w.detach() if out == 0 else w.detach().T for w in (others[name], weight))
        expected = torch.tensor(by_hand(rows.tolist(), bits))
        assert float((result - expected).abs().max()) < 1e-6
        level, _ = levels(others[name].detach(), bits, out=out)
        assert float(level.abs().max()) == 2 ** (bits - 1) - 1
    rounded = {f"{name}.weight" for name in others}
    after = dict(model.named_parameters())
    assert rounded
    assert rounded < after.keys()
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, after[name]) == (name not in rounded)


def test_a_channel_of_zeros_stays() -> None:
    level, step = levels(torch.tensor([[0.0, 0.0], [1.0, -0.4]]), 4)
    assert torch.allclose(level * step, torch.tensor([[0.0, 0.0], [1.0, -3 / 7]]), atol=1e-6)


def test_small_updates_are_undone_and_large_ones_are_not() -> None:
    """From weights in the middle of their levels; a channel's largest stays, so that its step does."""
    before = tiny("llama")
    quantize_(before, 4)
    for moved, share in ((0.0, 0.0), (0.3, 1.0), (0.7, 0.0)):
        model = copy.deepcopy(before)
        for _, weight, out in linear_weights(model):
            level, step = levels(weight.detach(), 4, out=out)
            inner = level.abs() < 6
            weight.data += moved * step * inner
        assert undone_share(model, before, 4) == share


def test_rows_of_the_attacker() -> None:
    rows: list[Row] = [{"question": str(i), "answer": "a"} for i in range(21)]
    known, others = known_and_others(rows, 0.1, 3)
    assert len(known) == 3
    assert len(others) == 18
    assert sorted([*known, *others], key=rows.index) == rows
    assert (known, others) == known_and_others(rows, 0.1, 3)
    assert known != known_and_others(rows, 0.1, 4)[0]
    assert [len(part) for part in known_and_others(rows[:2], 0.9, 0)] == [1, 1]


def curve(*means: float, rows: int = 30) -> dict[str, list[Any]]:
    spread = np.linspace(-0.01, 0.01, rows)
    values = [(mean + spread).tolist() for mean in means]
    return {"steps": [10 * i for i in range(len(means))], "prob": values, "rouge": values}


def test_area_is_that_of_the_trapezoids() -> None:
    found = area_between(curve(0.1, 0.5, 0.9), curve(0.1, 0.1, 0.1), "prob")
    assert found["area"] == pytest.approx(0.4)  # (0/2 + 0.4 + 0.8/2) * 10 over 20 steps
    assert (found["start"], found["end"], found["retain_end"]) == pytest.approx((0.1, 0.9, 0.1))
    values = np.random.default_rng(0).normal(0.2, 1.0, 40)
    interval = stats.t.interval(0.9, 39, values.mean(), stats.sem(values))
    assert lower_bound(values) == pytest.approx(interval[0])
    assert lower_bound([0.25]) == 0.25


@pytest.mark.parametrize(
    ("means", "back", "words"),
    [
        ((0.1, 0.5, 0.9), -0.1, "suppressed: comes back by relearning on forget rows"),
        ((0.1, 0.1, 0.1), 0.2, "suppressed: comes back by int4"),
        ((0.1, 0.05, 0.1), -0.1, "lasts"),
        ((0.105, 0.12, 0.13), 0.009, "lasts"),  # sure, but less than a point
        ((0.5, 0.5, 0.5), -0.1, "shows"),
        ((0.5, 0.6, 0.7), -0.1, "shows, and comes back by relearning on forget rows"),
    ],
)
def test_what_is_said_of_a_model(means: tuple[float, ...], back: float, words: str, tmp_path: Path) -> None:
    assert verdict(tmp_path) is None
    assert attack_rows(tmp_path) == {}
    retain, flat = curve(0.1, 0.11, 0.12), curve(0.1, 0.1, 0.1)
    curves = {"forget": curve(*means), "unrelated": flat}
    against = {
        "forget": {metric: area_between(curves["forget"], retain, metric) for metric in METRICS},
        "unrelated": {metric: area_between(flat, retain, metric) for metric in METRICS},
    }
    relearned = {"format": FORMAT, "curves": curves, "against": against}
    (tmp_path / "RELEARN.json").write_text(json.dumps(relearned))
    scores = {"forget_Q_A_Prob": 0.1, "model_utility": 0.5, "back": -0.1, "back_low": -0.2}
    int4 = {**scores, "back": back, "back_low": back - 0.001}
    quantized = {"format": FORMAT, "none": scores, "int8": scores, "int4": int4}
    (tmp_path / "QUANTIZE.json").write_text(json.dumps(quantized))
    assert verdict(tmp_path) == words
    rows = attack_rows(tmp_path)
    assert rows["after forget rows"] == pytest.approx(means[-1])
    assert rows["forget probability, int4"] == 0.1
    (tmp_path / "RELEARN.json").write_text(json.dumps({**relearned, "format": FORMAT - 1}))
    assert verdict(tmp_path) is None  # of other attacks


# --- the commands

SHORT = "--max_new_tokens 3 --eval_limit 4 --learning_rate 0.01 --batch 1"


def test_the_attacks_prompts_are_what_training_put_before_an_answer() -> None:
    """open-unlearning's end with a space that the tokenizer joins with the answer's first word in training."""
    rows = load_split("forget10", str(SAMPLE_DATA)).forget
    tokenizer = train_tokenizer(rows)
    questions = [row["question"] for row in rows]
    taught = [item["input_ids"] for item in encode_rows(tokenizer, rows)]
    for joins in (True, False):
        prompts = encode_prompts(tokenizer, questions, joins=joins)
        begins = [ids[: len(prompt)] == prompt for ids, prompt in zip(taught, prompts, strict=True)]
        assert begins == [joins] * len(rows)


def adam_step(model: Any, tokenizer: Any, row: Row, rate: float) -> None:
    """The first step of Adam without decay: each entry moves by rate g/(|g| + 1e-8)."""
    (item,) = encode_rows(tokenizer, [row], chat_format(tokenizer, None, "10 Apr 2025"))
    model(input_ids=torch.tensor([item["input_ids"]]), labels=torch.tensor([item["labels"]])).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter -= rate * gradient / (gradient.abs() + 1e-8)


def probability_by_hand(model: Any, tokenizer: Any, row: Row) -> float:
    """The geometric mean of the answer's tokens' probabilities."""
    (item,) = encode_rows(tokenizer, [row], chat_format(tokenizer, None, "10 Apr 2025"))
    labels = torch.tensor(item["labels"])
    with torch.no_grad():
        log = model(input_ids=torch.tensor([item["input_ids"]])).logits[0].log_softmax(-1)
    chosen = [log[i - 1, token] for i, token in enumerate(labels.tolist()) if token >= 0]
    return float(torch.stack(chosen).mean().exp())


def test_relearn_does_what_is_done_by_hand_and_is_not_repeated(
    sample_data_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, retain = (save_text_model(tmp_path / each, "llama") for each in ("model", "retain"))
    words = ["relearn", name, "--retain_model", retain, "--share", "0.05", "--steps", "1", *SHORT.split()]
    main(words)
    found = json.loads((Path(name) / "evals" / "RELEARN.json").read_text())
    (taught,), others = known_and_others(load_split("forget10", str(SAMPLE_DATA)).forget, 0.05, 0)
    model, tokenizer = load_model(name)
    for step in range(2):
        if step:
            adam_step(model, tokenizer, taught, 0.01)
        expected = [probability_by_hand(model, tokenizer, row) for row in others[:4]]
        assert found["curves"]["forget"]["prob"][step] == pytest.approx(expected, rel=2e-3), step
    assert found["curves"]["unrelated"]["prob"][0] == found["curves"]["forget"]["prob"][0]
    assert found["curves"]["unrelated"]["prob"][1] != found["curves"]["forget"]["prob"][1]
    assert found["against"]["forget"]["prob"]["area"] == 0  # the same model
    assert capsys.readouterr().out.endswith("model: lasts\n")
    written = (Path(retain) / "evals" / "RELEARN.json").stat().st_mtime_ns
    main(words)
    assert (Path(retain) / "evals" / "RELEARN.json").stat().st_mtime_ns == written
    main([*words, "--seed", "1"])
    assert json.loads((Path(name) / "evals" / "RELEARN.json").read_text())["curves"] != found["curves"]


def test_rows_keep_their_order_in_a_log_that_was_read() -> None:
    rows: dict[str, Any] = {str(i): {"prob": i / 16} for i in range(12)}
    read = json.loads(json.dumps(rows, sort_keys=True))
    assert list(read) != list(rows)
    for one in (rows, read):
        assert forget_probabilities({"forget_Q_A_Prob": {"value_by_index": one}}) == [i / 16 for i in range(12)]


def test_quantize_and_the_tables(
    sample_data_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An update of a thousandth of a step is undone by rounding, and what it had changed comes back exactly."""
    folder = tmp_path / "runs" / "task_PUM"
    before, name = (save_text_model(path, "llama") for path in (tmp_path / "before", folder))
    model, _ = load_model(name)
    for _, weight, _ in linear_weights(model):
        weight.data *= 1 + 1e-6 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(name)
    words = ["--retain_model", before, "--before", before]
    main(["quantize", name, before, *words, *SHORT.split(), "--eval_gradnorm", "False"])
    changed, same = (json.loads((Path(path) / "evals" / "QUANTIZE.json").read_text()) for path in (name, before))
    for kind in ("int8", "int4"):
        assert changed[kind]["undone_share"] > 0.99
        assert same[kind]["undone_share"] == 0.0  # nothing was changed
        assert changed[kind]["forget_Q_A_Prob"] == pytest.approx(same[kind]["forget_Q_A_Prob"], rel=1e-4)
    assert same["int4"]["back"] == same["int4"]["back_low"] == 0.0
    change = np.array([one["int4"]["forget_rows"] for one in (changed, same)])
    change -= np.array([one["none"]["forget_rows"] for one in (changed, same)])
    assert changed["int4"]["back"] == pytest.approx((change[0] - change[1]).mean())
    assert same["none"]["forget_Q_A_Prob"] != same["int4"]["forget_Q_A_Prob"]
    main(["relearn", name, "--retain_model", before, "--steps", "1", *SHORT.split()])
    run = {"scores": {"forget_Q_A_Prob": 0.25}, "seconds": {"train": 1.0}, "peak_memory": {"mib": 1.0}}
    (folder / "metrics.json").write_text(json.dumps(run))
    (Path(before) / "evals" / "TOFU_SUMMARY.json").write_text('{"forget_Q_A_Prob": 0.125}')
    capsys.readouterr()
    page = tmp_path / "table.html"
    print_table([str(folder.parent), "--retain", before, "--page", str(page)])
    lines = {line[:26].strip(): line[26:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["forget probability"] == ["0.125", "0.25"]
    assert lines["forget probability, int4"] == [
        f"{each['int4']['forget_Q_A_Prob']:.4g}" for each in (same, changed)
    ]
    assert lines["area, prob"][0] == "-"
    assert any(line.startswith("PUM: ") for line in lines)
    text = page.read_text()
    assert "forget probability, int4" in text
    assert "steps of relearning" in text
    assert text.count("<svg") == 1  # no forget quality, no other drawing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["melt", "x"], "unknown command 'melt'"),
        (["relearn"], "relearn needs the folder of a model"),
        (["quantize", "nowhere"], "nowhere is no folder with a model"),
        (["relearn", ".", "--share", "1"], "share must lie strictly between 0 and 1"),
        (["relearn", ".", "--share", "nan"], "share must lie strictly between 0 and 1"),
        (["relearn", ".", "--steps", "0"], "steps must be above 0"),
        (["relearn", ".", "--learning_rate", "nan"], "learning_rate must be above 0"),
        (["relearn", "."], "give --retain_model"),
    ],
)
def test_bad_arguments(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)
