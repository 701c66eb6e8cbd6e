"""TOFU's scores against values worked out by hand, `rouge-score` and `scipy`, and the evaluation of a model."""

from __future__ import annotations

import json
import math
import warnings
import zlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from builders import make_model, make_tokenizer
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from transformers import GenerationConfig

from src.engine.batching import ScoredSequence
from src.tofu import metrics
from src.tofu.chat import ChatFormat
from src.tofu.evaluation import ATTACKS, UTILITY, EvalData, EvalSettings, Evaluation, evaluate
from src.tofu.logs import EVAL, KEY, SUMMARY, RetainLog, read_retain_log, weights_digest
from src.tofu.passes import generate, gradient_norms, teacher_forced
from src.tofu.prompts import encode_answers, encode_prompts
from src.utils import UserError

# Scores of numbers


def test_truth_ratio():
    # exp(-(1 + 3)/2) / exp(-1) = exp(-1)
    assert metrics.truth_ratio(1.0, [1.0, 3.0]) == pytest.approx(math.exp(-1))
    assert metrics.truth_ratio(2.0, [2.0]) == pytest.approx(1.0)
    assert metrics.truth_ratio(5000.0, [0.0]) == 1e10  # 1 / (0 + 1e-10)
    for arguments in ((1.0, []), (float("nan"), [1.0]), (1.0, [float("nan")])):
        with pytest.raises(ValueError, match="truth ratio needs losses"):
            metrics.truth_ratio(*arguments)


def test_truth_ratio_means():
    assert metrics.forget_truth_ratio([0.5, 4.0]) == pytest.approx((0.5 + 0.25) / 2)
    assert metrics.kept_truth_ratio([0.5, 4.0]) == pytest.approx((0.5 + 0) / 2)


def test_forget_quality_is_the_p_value_of_the_ks_test():
    rng = np.random.default_rng(0)
    one, other = np.exp(rng.normal(size=40)), np.exp(rng.normal(0.5, size=30))
    assert metrics.forget_quality(one, other) == stats.ks_2samp(one, other).pvalue
    # Two samples of two without overlap: D = 1, and 2 of the 6 orders are as extreme.
    assert metrics.forget_quality([1.0, 2.0], [3.0, 4.0]) == pytest.approx(1 / 3)
    assert metrics.forget_quality([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert metrics.forget_quality([1e-40, 1e-60], [1e-30, 1e-50]) == 1.0  # 1/(r + 1e-10) ties them all
    with pytest.raises(ValueError, match="both models"):
        metrics.forget_quality([], [1.0])


def test_model_utility_is_the_harmonic_mean():
    assert metrics.model_utility([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert metrics.model_utility([0.5] * 9) == pytest.approx(0.5)
    assert metrics.model_utility([1.0, 0.0]) == 0.0
    for values in ([], [float("nan")], [-1.0]):
        with pytest.raises(ValueError, match="model utility"):
            metrics.model_utility(values)


def test_probabilities():
    assert metrics.probability(math.log(4)) == pytest.approx(0.25)
    assert metrics.normalised_probability(math.log(4), [math.log(8), math.log(8)]) == pytest.approx(0.5)
    assert metrics.normalised_probability(2000.0, [2000.0]) == 0.0  # 0 / (0 + 1e-10)


def test_memorization():
    assert metrics.extraction_strength([True, True]) == 1.0
    assert metrics.extraction_strength([True, False, True, True]) == pytest.approx(0.5)
    assert metrics.extraction_strength([True, True, False]) == pytest.approx(1 / 3)  # never below 1/n
    assert metrics.exact_memorization([True, False, True, True]) == 0.75
    assert metrics.extraction_strength([]) == 0.0
    assert metrics.exact_memorization([]) is None


def test_min_k():
    values = [-0.1 * i for i in range(1, 11)]
    assert metrics.min_k_score(values, 0.2) == pytest.approx(0.95)  # the two least of ten
    assert metrics.min_k_score(values) == pytest.approx(0.85)  # the four least
    assert metrics.min_k_score([-1.0, -3.0]) == 3.0  # at least one
    assert metrics.min_k_score([]) == 0.0


def test_zlib():
    assert metrics.zlib_score(2.0, "the film") == 2.0 / len(zlib.compress(b"the film"))


def test_membership_auc_counts_pairs_and_half_of_the_ties():
    assert metrics.membership_auc([1.0, 2.0], [3.0, 4.0]) == 1.0
    assert metrics.membership_auc([3.0], [1.0, 3.0, 5.0]) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 20), rng.integers(1, 7, 15)
    brute = np.mean([(o > f) + 0.5 * (o == f) for f in one for o in other])
    assert metrics.membership_auc(one, other) == pytest.approx(brute)
    with pytest.raises(ValueError, match="both sets"):
        metrics.membership_auc([], [1.0])


def test_privleak():
    assert metrics.privleak(1.0, 0.5) == pytest.approx(-100.0)
    assert metrics.privleak(0.4, 0.5) == pytest.approx(20.0)
    assert metrics.privleak(0.5, 0.5) == 0.0
    with pytest.raises(ValueError, match="AUC 1"):
        metrics.privleak(0.5, 1.0)


def test_rouge_is_rouge_scores_recall_with_the_stemmer():
    answers = ["The author wrote many novels", "a b c d"]
    texts = ["many novel were written by the author", "a c x"]
    found = metrics.rouge_recalls(answers, texts)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for value, answer, text in zip(found, answers, texts, strict=True):
        assert value["rougeL_recall"] == scorer.score(answer, text)["rougeL"].recall
    # By hand: "mani novel" is the longest common subsequence of five answer words; "a c" of four.
    assert [value["rougeL_recall"] for value in found] == pytest.approx([2 / 5, 2 / 4])
    assert [value["rouge1_recall"] for value in found] == pytest.approx([4 / 5, 2 / 4])


# What a model is asked


PAIRS = [("was it good", "it was so bad"), ("so", "a"), ("was the film dull and cold", "very very very slow")]


@pytest.fixture(scope="module")
def model():
    return make_model("llama")


def test_one_pass_gives_what_each_text_gives_alone(model):
    sequences = encode_answers(make_tokenizer(), PAIRS)
    together = teacher_forced(model, sequences)
    for sequence, scored in zip(sequences, together, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([sequence.ids])).logits[0].double()
        log_p = logits.log_softmax(-1)[sequence.start - 1 : -1]
        targets = torch.tensor(sequence.ids[sequence.start :])
        chosen = log_p[torch.arange(len(targets)), targets]
        np.testing.assert_allclose(scored.log_probs, chosen.numpy(), atol=1e-5)
        assert scored.hits.tolist() == (log_p.argmax(-1) == targets).tolist()
        mean = (log_p.exp() * log_p).sum(-1)
        std = ((log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1)).sqrt()
        np.testing.assert_allclose(scored.standardised, ((chosen - mean) / std).numpy(), atol=1e-3)
        assert scored.loss == pytest.approx(-float(chosen.mean()), abs=1e-5)


def test_generation_is_the_librarys_greedy_one(model):
    """Also where the checkpoint would sample, and where it names an end token of its own."""
    tokenizer = make_tokenizer()
    prompts = encode_prompts(tokenizer, [question for question, _ in PAIRS])
    eos = [tokenizer.eos_token_id]
    plain = [library_answer(model, tokenizer, prompt, eos) for prompt in prompts]
    own_end = [*eos, tokenizer(plain[0], add_special_tokens=False)["input_ids"][2]]
    shorter = [library_answer(model, tokenizer, prompt, own_end) for prompt in prompts]
    assert shorter[0] != plain[0]
    before = model.generation_config
    try:
        for ends, expected in ((eos, plain), (own_end, shorter)):
            model.generation_config = GenerationConfig(eos_token_id=ends, do_sample=True, repetition_penalty=3.0)
            assert generate(model, tokenizer, prompts, max_new_tokens=8) == expected
            assert generate(model, tokenizer, prompts, max_new_tokens=8, token_budget=1) == expected
    finally:
        model.generation_config = before


def library_answer(model, tokenizer, prompt, ends):
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=ends, pad_token_id=1)
    output = model.generate(input_ids=torch.tensor([prompt]), generation_config=config)
    new = [token for token in output[0, len(prompt) :].tolist() if token not in ends]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def test_gradient_norms(model):
    sequences = encode_answers(make_tokenizer(), PAIRS)
    norms = gradient_norms(model, sequences)
    own = make_model("llama")
    ids = torch.tensor([sequences[0].ids])
    labels = ids.clone()
    labels[:, : sequences[0].start] = -100
    labels[:, -1] = -100  # the end-of-sequence token
    own(ids, labels=labels).loss.backward()
    tensors = [float(p.grad.norm()) for p in own.parameters()]
    assert norms[0] == pytest.approx(sum(tensors) / len(tensors), rel=1e-4)
    assert gradient_norms(
        model, [ScoredSequence(sequences[0].ids[: sequences[0].start + 1], sequences[0].start)]
    ) == [0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_gives_nan_is_refused():
    broken = make_model("llama")
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the model gives NaN"):
        teacher_forced(broken, [ScoredSequence([0, 5, 6], 1)])


# The evaluation


def qa(count, offset=0):
    words = ["dull", "warm", "cold", "slow", "bright", "good", "bad"]
    pick = [words[(i + offset) % 7] for i in range(count)]
    return [
        {
            "question": f"was the {word} film so {words[(i + offset) // 7]}",
            "answer": f"it was {word}",
            "paraphrased_answer": f"so {word} it was",
            "perturbed_answer": [f"so {w} it was" for w in words if w != word][:5],
        }
        for i, word in enumerate(pick)
    ]


def make_data(holdout=True):
    bare = [{k: v for k, v in row.items() if k != "paraphrased_answer"} for row in qa(4, 20)]
    sets = {"forget": qa(6), "retain": qa(6, 7), "ra": bare[:2], "wf": bare[2:]}
    return EvalData("forget10", sets, qa(6, 30) if holdout else [])


def make_evaluation(model, **settings):
    return Evaluation(
        model, make_tokenizer(), settings.pop("data", make_data()), EvalSettings(max_new_tokens=4), **settings
    )


def test_evaluation_writes_open_unlearnings_layout_and_is_its_own_retain_log(model, tmp_path):
    with pytest.warns(UserWarning, match="python -m pum.run_unlearn retain-log --forget_split forget10"):
        log, was_there = evaluate(make_evaluation(model), tmp_path / "evals")
    assert not was_there
    assert log["forget_quality"]["agg_value"] is None
    assert log["privleak"]["agg_value"] is None
    stored = json.loads((tmp_path / "evals" / EVAL).read_text())
    summary = json.loads((tmp_path / "evals" / SUMMARY).read_text())
    assert stored == log
    values = {name: entry["agg_value"] for name, entry in log.items()}
    assert summary == {name: value for name, value in values.items() if value is not None}
    assert "forget_quality" not in summary
    assert stored["mia_min_k"]["auc"] == stored["mia_min_k"]["agg_value"]
    for name in ("forget_truth_ratio", "extraction_strength", "exact_memorization"):
        assert list(stored[name]["value_by_index"]) == list("012345")
        assert all("score" in value for value in stored[name]["value_by_index"].values())
    assert summary["model_utility"] == metrics.model_utility([summary[name] for name in UTILITY])
    assert len(UTILITY) == 9
    assert 0 < summary["mia_min_k"] < 1

    retain_log = read_retain_log(tmp_path / "evals")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = evaluate(make_evaluation(model, retain_log=retain_log), tmp_path / "again")
    assert again["forget_quality"]["agg_value"] == 1.0
    assert again["privleak"]["agg_value"] == 0.0
    # What is open is said again where the evaluation is not repeated.
    with pytest.warns(UserWarning, match="retain-log"):
        assert evaluate(make_evaluation(model), tmp_path / "evals")[1]


def test_an_evaluation_in_bfloat16_is_close_and_another_evaluation(model, tmp_path):
    data, settings = make_data(), EvalSettings(max_new_tokens=4, autocast=True)
    exact, _ = evaluate(make_evaluation(model, is_retain_model=True), tmp_path)
    rounded, was_there = evaluate(
        Evaluation(model, make_tokenizer(), data, settings, is_retain_model=True), tmp_path
    )
    assert not was_there
    for name in ("forget_Q_A_Prob", "retain_Q_A_Prob", "forget_truth_ratio"):
        whole, half = exact[name]["agg_value"], rounded[name]["agg_value"]
        assert whole != half
        assert half == pytest.approx(whole, rel=0.02)
    assert next(model.parameters()).dtype == torch.float32


def test_a_retain_log_of_another_split_is_noticed(model):
    other = RetainLog([0.5] * 7, 0.5, "digest")
    with pytest.raises(UserError, match="the retain log has 7 forget rows, this evaluation 6"):
        make_evaluation(model, retain_log=other)


def test_a_retain_log_of_other_settings_is_refused_by_name(model, tmp_path):
    evaluate(make_evaluation(model, is_retain_model=True), tmp_path)
    log = read_retain_log(tmp_path)
    assert log.settings["mink_k"] == 0.4
    tokenizer = make_tokenizer()
    make = partial(Evaluation, model, tokenizer, make_data(), retain_log=log)
    with pytest.raises(UserError, match=r"was made with mink_k 0\.4, this run has 0\.2"):
        make(EvalSettings(max_new_tokens=4, mink_k=0.2))
    with pytest.raises(UserError, match="was made with forget_split 'forget10', this run has 'forget05'"):
        make_evaluation(model, retain_log=log, data=replace(make_data(), forget_split="forget05"))
    other = ChatFormat("Gemma", None)
    with pytest.raises(UserError, match=r"was made with prompts .*'no template'.* this run has .*'Gemma'"):
        make(EvalSettings(max_new_tokens=4), chat=other)
    # open-unlearning's do not say, and have k = 0.4.
    foreign = replace(log, settings=None)
    with pytest.raises(UserError, match=r"does not say its settings, so it was made with mink_k 0\.4"):
        make(EvalSettings(max_new_tokens=4, mink_k=0.2), retain_log=foreign)
    make(EvalSettings(max_new_tokens=4), retain_log=foreign)
    with pytest.raises(UserError, match=r"mink_k must lie in \(0, 1\], got 0"):
        EvalSettings(mink_k=0.0)


def test_values_of_the_log_follow_from_single_passes(model):
    tokenizer = make_tokenizer()
    log = make_evaluation(model, is_retain_model=True).run()

    def loss(question, answer):
        (scored,) = teacher_forced(model, encode_answers(tokenizer, [(question, answer)]))
        return scored.loss

    row = make_data().sets["forget"][0]
    wrong = [loss(row["question"], text) for text in row["perturbed_answer"]]
    ratio = math.exp(loss(row["question"], row["paraphrased_answer"]) - sum(wrong) / 5)
    assert log["forget_truth_ratio"]["value_by_index"]["0"]["score"] == pytest.approx(ratio, rel=1e-4)
    expected = math.exp(-loss(row["question"], row["answer"]))
    assert log["forget_Q_A_Prob"]["value_by_index"]["0"]["prob"] == pytest.approx(expected, rel=1e-4)
    row = make_data().sets["wf"][0]
    own, others = (
        math.exp(-loss(row["question"], row["answer"])),
        [math.exp(-loss(row["question"], text)) for text in row["perturbed_answer"]],
    )
    normalised = log["wf_Q_A_Prob_normalised"]["value_by_index"]["0"]["prob"]
    assert normalised == pytest.approx(own / (own + sum(others)), rel=1e-4)


def test_a_stale_evaluation_is_never_reused(tmp_path):
    model = make_model("llama")
    evaluation = make_evaluation(model, is_retain_model=True)
    first, _ = evaluate(evaluation, tmp_path)
    assert evaluate(make_evaluation(model, is_retain_model=True), tmp_path) == (first, True)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    assert not evaluate(make_evaluation(model, is_retain_model=True), tmp_path)[1]
    other = make_data()
    other.sets["forget"][0]["answer"] = "it was so so"
    assert not evaluate(make_evaluation(model, data=other, is_retain_model=True), tmp_path)[1]
    settings = Evaluation(model, make_tokenizer(), other, EvalSettings(max_new_tokens=5), is_retain_model=True)
    assert not evaluate(settings, tmp_path)[1]
    assert evaluate(settings, tmp_path)[1]
    (tmp_path / KEY).unlink()
    assert not evaluate(settings, tmp_path)[1]


def test_without_holdout_rows_the_attacks_stay_open(model):
    with pytest.warns(UserWarning, match="forget10 has no holdout rows"):
        log = make_evaluation(model, data=make_data(holdout=False), is_retain_model=True).run()
    assert [log[name]["agg_value"] for name in ATTACKS] == [None] * 6


def test_the_reference_attack_compares_losses(model):
    same = make_evaluation(model, reference_model=make_model("llama"), is_retain_model=True).run()
    differences = [
        entry["score"]
        for side in ("forget", "holdout")
        for entry in same["mia_reference"][side]["value_by_index"].values()
    ]
    assert differences == pytest.approx([0.0] * 12, abs=1e-5)


def test_weights_digest_tells_every_change_apart():
    model = make_model("llama")
    first = weights_digest(model)
    assert first == weights_digest(make_model("llama"))
    assert first != weights_digest(make_model("llama", dtype=torch.bfloat16))
    model.model.norm.weight.requires_grad_(False)
    assert weights_digest(model, trained_only=True) != first == weights_digest(model)


def test_retain_logs_of_open_unlearning_are_read_and_others_refused(tmp_path):
    path = tmp_path / EVAL
    by_index = {str(i): {"score": i / 10} for i in (10, 2, 0)}
    path.write_text(
        json.dumps(
            {
                "forget_truth_ratio": {"agg_value": 0.6, "value_by_index": by_index},
                "mia_min_k": {"agg_value": 0.4, "auc": 0.4},
            }
        )
    )
    log = read_retain_log(path)
    assert log.truth_ratios == [0.0, 0.2, 1.0]
    assert log.min_k_auc == 0.4
    assert log.settings is None
    old = json.loads(path.read_text())
    del old["mia_min_k"]["auc"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert read_retain_log(tmp_path / "old.json").min_k_auc is None  # of a k that it does not say
    no_number = {"forget_truth_ratio": {"value_by_index": {"0": {"score": math.nan}}}}
    for damaged in (
        {"model_utility": {"agg_value": 1}},
        no_number,
        {**json.loads(path.read_text()), "mia_min_k": 1},
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="has no forget_truth_ratio scores"):
            read_retain_log(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_retain_log(path)
    with pytest.raises(UserError, match="cannot read the evaluation"):
        read_retain_log(tmp_path / "none.json")
