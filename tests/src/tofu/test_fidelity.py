"""What published TOFU numbers hang on, against numbers worked out by hand and formulas written a second time.

`locuslab_logs.json` has the layout of locuslab/tofu's evaluation logs: losses of answers, paraphrases and wrong
answers, and ROUGE, by set and row.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from builders import make_model, make_tokenizer
from scipy import stats

from src.engine.batching import ScoredSequence
from src.tofu import metrics
from src.tofu.entries import SetScores, attack, likelihoods, memorization, rouge
from src.tofu.evaluation import UTILITY, EvalData, EvalSettings, Evaluation, evaluate
from src.tofu.logs import EVAL, SUMMARY
from src.tofu.passes import Scored

STORED = json.loads((Path(__file__).parent / "locuslab_logs.json").read_text())
SETS = {
    "ra": "eval_real_author_wo_options.json",
    "wf": "eval_real_world_wo_options.json",
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
}
EPS = 1e-10


def scored(*log_probs: float, hits: tuple[bool, ...] | None = None) -> Scored:
    """One answer with these log-probabilities, the last of the end-of-sequence token."""
    values = np.array(log_probs)
    return Scored(values, np.array(hits if hits is not None else [True] * len(values)), values * 10)


def close(value, expected):
    assert value == pytest.approx(expected, rel=1e-12, abs=0)


# By hand


def test_denominators_of_a_collapsed_model():
    """At 30 nats a token e^-30 = 9.3576e-14 is far below 1e-10, and the ratio is no longer one."""
    close(metrics.truth_ratio(30.0, [29.0, 31.0]), 9.34887464442962e-4)
    close(metrics.forget_truth_ratio([9.34887464442962e-4]), 9.34887464442962e-4)
    close(metrics.normalised_probability(30.0, [25.0, 25.0, 25.0]), 6.60115271042476e-4)
    close(metrics.forget_truth_ratio([0.0, 4.0]), 0.12499999999687501)  # (0 + 1/(4 + 1e-10))/2
    close(metrics.privleak(0.25, 0.5), 49.99999999)  # ((.75 - .5)/(.5 + 1e-10)) x 100


def test_share_of_the_right_answer():
    # exp(-mean(ln 2, ln 8)) = 1/4 beside a right answer of 1/4.
    close(metrics.share_of_right(math.log(4), [math.log(2), math.log(8)]), 0.4999999999)
    rows = SetScores([scored(-0.1)], [scored(-math.log(4))], [[scored(-math.log(2)), scored(-math.log(8))]])
    entry = likelihoods("forget", rows)["forget_truth_ratio_prob_mean"]
    close(entry["agg_value"], 0.4999999999)
    assert "retain_truth_ratio_prob_mean" not in likelihoods("retain", rows)


def test_perturbed_probability_is_the_mean_of_the_probabilities_listed_by_row():
    rows = SetScores(
        [scored(-0.1)] * 2,
        [scored(-0.1)] * 2,
        [[scored(-math.log(2)), scored(-math.log(4))], [scored(-math.log(8)), scored(-math.log(8))]],
    )
    entry = likelihoods("retain", rows)["retain_Q_A_PERT_Prob"]
    assert entry["value_by_index"]["0"]["prob"] == pytest.approx([0.5, 0.25])
    assert entry["value_by_index"]["0"]["avg_loss"] == pytest.approx([math.log(2), math.log(4)])
    close(entry["agg_value"], (0.375 + 0.125) / 2)


def test_min_k_and_memorization_leave_the_end_token_out():
    hits = (False, True, True, False, False)
    rows = SetScores([scored(-1.0, -2.0, -3.0, -4.0, -9.0, hits=hits)], [], [])
    log = memorization(rows)
    close(log["extraction_strength"]["agg_value"], 0.25)  # four tokens, the last one wrong: 1/4, not 0
    close(log["exact_memorization"]["agg_value"], 0.5)
    # Of four tokens 40 % is one; of the five with the end token it would be two, of 9 and 4.
    close(metrics.min_k_score(rows.answers[0].log_probs[:-1]), 4.0)
    close(metrics.min_k_score([-1, -2, -3, -4, -5]), 4.5)
    only_end = memorization(SetScores([scored(-1.0), scored(-1.0, -1.0)], [], []))
    assert only_end["extraction_strength"]["agg_value"] == 0.5
    assert only_end["exact_memorization"]["agg_value"] == 1.0  # of the one answer that has tokens


def test_rouge_of_paraphrase_and_wrong_answers():
    row = {
        "question": "q",
        "answer": "a b c d",
        "paraphrased_answer": "d c x y",
        "perturbed_answer": ["a b x y", "x y z w"],
    }
    log = rouge("forget", [row], ["a b c"])
    close(log["forget_Q_A_ROUGE"]["agg_value"], 0.75)
    close(log["forget_Q_A_PARA_ROUGE"]["agg_value"], 0.25)
    close(log["forget_Q_A_PERT_ROUGE"]["agg_value"], 0.25)
    assert log["forget_Q_A_PERT_ROUGE"]["value_by_index"]["0"]["rougeL_recall"] == [0.5, 0.0]
    assert set(rouge("wf", [row], ["a"])) == {"wf_Q_A_ROUGE"}


def test_attacks_have_both_names_and_rel_diff_is_relative_to_the_retain_model():
    entry = attack([1.0, 3.0], [2.0, 4.0])
    assert entry["auc"] == entry["agg_value"] == 0.75
    assert entry["holdout"]["value_by_index"]["1"] == {"score": 4.0}
    close(metrics.relative_difference(0.6, 0.5), 19.999999996)


def test_zlib_compresses_what_the_scored_tokens_say():
    """Also where the answer's first token is not scored, and without the end token."""
    tokenizer, model = make_tokenizer(), make_model("llama")
    row = {"question": "so", "answer": "very cold", "paraphrased_answer": "cold", "perturbed_answer": ["warm"]}
    sets = {"forget": [row], "retain": [row], "ra": [row], "wf": [row]}
    evaluation = Evaluation(model, tokenizer, EvalData("forget10", sets, [row]), EvalSettings(2))
    place = evaluation.places["forget"][0][0]
    told = evaluation.sequences[place]
    evaluation.sequences[place] = ScoredSequence(told.ids, told.start + 1)
    log = evaluation.run()
    loss = log["mia_loss"]["forget"]["value_by_index"]["0"]["score"]
    found = log["mia_zlib"]["forget"]["value_by_index"]["0"]["score"]
    close(found, loss / len(zlib.compress(b"cold")))


# Stored logs and a log of ours, by formulas written a second time


def one_token(loss: float) -> Scored:
    return scored(-loss)


def entries_of(stored: dict) -> dict[str, dict]:
    """Our log's entries from stored losses, each answer as one token."""
    log: dict[str, dict] = {}
    for name, file in SETS.items():
        part = stored[file]
        rows = SetScores(
            [one_token(loss) for loss in part["avg_gt_loss"].values()],
            [one_token(loss) for loss in part["avg_paraphrased_loss"].values()],
            [[one_token(loss) for loss in losses] for losses in part["average_perturb_loss"].values()],
        )
        log.update(likelihoods(name, rows))
        log[f"{name}_Q_A_ROUGE"] = {"agg_value": float(np.mean(list(part["rougeL_recall"].values())))}
    return log


def arrays(stored: dict, name: str) -> tuple[np.ndarray, ...]:
    part = stored[SETS[name]]
    keys = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
    return tuple(np.array(list(part[key].values())) for key in keys)


def ratios(stored: dict, name: str, eps: float) -> np.ndarray:
    _, paraphrased, perturbed, _ = arrays(stored, name)
    return np.exp(-perturbed.mean(axis=1)) / (np.exp(-paraphrased) + eps)


def utility_by_hand(stored: dict, eps: float) -> float:
    values = []
    for name in ("retain", "ra", "wf"):
        right, _, perturbed, recalls = arrays(stored, name)
        p = np.exp(-right)
        values.append(np.mean(p if name == "retain" else p / (p + np.exp(-perturbed).sum(axis=1) + eps)))
        values += [np.mean(recalls), np.mean(np.maximum(0, 1 - ratios(stored, name, eps)))]
    return float(stats.hmean(values))


@pytest.mark.parametrize("which", ["unlearned", "retain"])
def test_stored_logs_give_the_same_utility_and_truth_ratios(which):
    stored = STORED[which]
    log = entries_of(stored)
    utility = metrics.model_utility([log[name]["agg_value"] for name in UTILITY])
    close(utility, utility_by_hand(stored, EPS))
    # locuslab/tofu has no 1e-10; on losses like these it is all that differs.
    assert utility == pytest.approx(utility_by_hand(stored, 0.0), rel=1e-8)
    for name in SETS:
        entry = log["forget_truth_ratio" if name == "forget" else f"{name}_Truth_Ratio"]
        found = [value["score"] for value in entry["value_by_index"].values()]
        np.testing.assert_allclose(found, ratios(stored, name, EPS), rtol=1e-12)
    truth = ratios(stored, "forget", EPS)
    close(log["forget_truth_ratio"]["agg_value"], float(np.mean(np.minimum(truth, 1 / (truth + EPS)))))


def test_stored_logs_give_the_same_forget_quality():
    one, other = (
        [entry["score"] for entry in entries_of(STORED[which])["forget_truth_ratio"]["value_by_index"].values()]
        for which in ("unlearned", "retain")
    )
    expected = [ratios(STORED[which], "forget", 0.0) for which in ("unlearned", "retain")]
    close(metrics.forget_quality(one, other), stats.ks_2samp(*expected).pvalue)


def test_a_log_of_ours_is_read_back_by_their_formulas(tmp_path):
    words = ["dull", "warm", "cold", "slow", "bright"]
    rows = [
        {
            "question": f"was the {word} film",
            "answer": f"it was {word}",
            "paraphrased_answer": f"so {word} it was",
            "perturbed_answer": [f"it was {other}" for other in words if other != word],
        }
        for word in words
    ]
    sets = {"forget": rows, "retain": rows[:3], "ra": rows[1:], "wf": rows[2:]}
    data = EvalData("forget10", sets, [{"question": "so", "answer": word} for word in words])
    made = Evaluation(make_model("llama"), make_tokenizer(), data, EvalSettings(4), is_retain_model=True)
    evaluate(made, tmp_path)
    log = json.loads((tmp_path / EVAL).read_text())
    values = {name: entry.get("value_by_index") for name, entry in log.items()}

    def column(name: str, key: str) -> np.ndarray:
        return np.array([value[key] for value in values[name].values()])

    def mean(name: str, key: str) -> None:
        table = column(name, key)
        close(log[name]["agg_value"], float(np.mean(table.mean(axis=tuple(range(1, table.ndim))))))

    for name in ("forget", "retain"):
        for kind in ("Prob", "PARA_Prob", "PERT_Prob"):
            mean(f"{name}_Q_A_{kind}", "prob")
        for kind in ("ROUGE", "PARA_ROUGE", "PERT_ROUGE"):
            mean(f"{name}_Q_A_{kind}", "rougeL_recall")
        right, wrong = column(f"{name}_Q_A_PARA_Prob", "avg_loss"), column(f"{name}_Q_A_PERT_Prob", "avg_loss")
        entry = "forget_truth_ratio" if name == "forget" else "retain_Truth_Ratio"
        truth = np.exp(-wrong.mean(axis=1)) / (np.exp(-right) + EPS)
        np.testing.assert_allclose(column(entry, "score"), truth, rtol=1e-12)
    for name in ("ra", "wf"):
        right, wrong = column(f"{name}_Q_A_Prob", "prob"), column(f"{name}_Q_A_PERT_Prob", "prob").sum(axis=1)
        np.testing.assert_allclose(
            column(f"{name}_Q_A_Prob_normalised", "prob"), right / (right + wrong + EPS), rtol=1e-12
        )
    close(log["model_utility"]["agg_value"], float(stats.hmean([log[name]["agg_value"] for name in UTILITY])))
    for name in ("mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_zlib", "mia_gradnorm"):
        forget, holdout = (
            [value["score"] for value in log[name][side]["value_by_index"].values()]
            for side in ("forget", "holdout")
        )
        wins = np.mean([(h > f) + 0.5 * (h == f) for f in forget for h in holdout])
        close(log[name]["auc"], float(wins))
        close(log[name]["agg_value"], float(wins))
    close(log["privleak_vs_half"]["agg_value"], (0.5 - log["mia_min_k"]["auc"]) / (0.5 + EPS) * 100)
    assert log["privleak"]["agg_value"] is None
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert all(isinstance(value, float) for value in summary.values())
    assert set(log) - set(summary) == {"evaluation_settings", *OPEN}


OPEN = {"forget_quality", "privleak", "rel_diff", "mia_reference"}
