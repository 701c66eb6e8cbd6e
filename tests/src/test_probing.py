"""Linear probing against scikit-learn on features from a plain pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_model, make_text_tokenizer, save_text_model
from sklearn.linear_model import LogisticRegressionCV

from paczo import run_paczo
from src import sample_data
from src.probing import features_and_tokens, fit_head
from src.tasks import get_task
from src.utils import UserError

SAMPLE_DATA = Path(sample_data.__file__).parent


def samples_of(name, count):
    lines = (SAMPLE_DATA / name.lower() / "train.jsonl").read_text().splitlines()[:count]
    return get_task(name).samples(map(json.loads, lines))


def plain_features(model, tokenizer, samples):
    """The last hidden states before every token of the right continuation, one text at a time."""
    features, tokens = [], []
    for sample in samples:
        ids = tokenizer(sample.prompt + sample.continuations[sample.label])["input_ids"]
        start = len(tokenizer(sample.prompt)["input_ids"])
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        features += [hidden[t - 1].double().numpy() for t in range(start, len(ids))]
        tokens += ids[start:]
    return np.stack(features), np.array(tokens)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:The least populated class")
@pytest.mark.parametrize(("name", "classes"), [("SST2", 2), ("CB", 3), ("TREC", None)])
def test_the_heads_rows_are_the_fits(name, classes):
    tokenizer = make_text_tokenizer()
    model = make_model("llama", vocab_size=len(tokenizer), positions=512)
    samples = samples_of(name, 36)
    objective = get_task(name).likelihood(model, tokenizer, samples)
    expected, tokens = plain_features(model, tokenizer, samples)
    found, targets = features_and_tokens(model, objective)
    order, other = np.lexsort(expected.T), np.lexsort(found.double().numpy().T)
    np.testing.assert_allclose(found.numpy()[other], expected[order], rtol=1e-4, atol=1e-5)
    assert targets.numpy()[other].tolist() == tokens[order].tolist()
    before = model.lm_head.weight.detach().clone()
    fit_head(model, objective)
    head = model.lm_head.weight.detach()
    kinds = sorted(set(tokens.tolist()))
    assert classes is None or len(kinds) == classes
    untouched = [token for token in range(len(head)) if token not in kinds]
    assert torch.equal(head[untouched], before[untouched])
    # In the order of the engine, so that the folds are the same.
    fit = LogisticRegressionCV(fit_intercept=False, random_state=0, tol=1e-4, max_iter=5000)
    fit.fit(found.double().numpy(), targets.numpy())
    rows = fit.coef_ if len(kinds) > 2 else np.concatenate([-fit.coef_, fit.coef_]) / 2
    np.testing.assert_allclose(head[kinds].numpy(), rows, rtol=1e-4, atol=1e-6)
    logits = found @ head[kinds].T
    assert np.array(kinds)[logits.argmax(1).numpy()].tolist() == fit.predict(found.double().numpy()).tolist()


def test_one_right_token_is_nothing_to_fit():
    tokenizer = make_text_tokenizer()
    model = make_model("opt", vocab_size=len(tokenizer), positions=512)
    samples = [sample for sample in samples_of("SST2", 30) if sample.label == 1]
    with pytest.raises(UserError, match="at least two different right tokens"):
        fit_head(model, get_task("SST2").likelihood(model, tokenizer, samples))


def test_the_command_says_that_it_is_not_private(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(SAMPLE_DATA))
    folder = save_text_model(tmp_path / "model", "llama")
    words = ["--linear_probing", "--lp_early_stopping", "--trainer", "regular", "--train_set_seed", "0"]
    sizes = ["--num_train", "40", "--num_eval", "8", "--report_to", "none", "--use_cpu", "True"]
    run_paczo.main([*words, *sizes, "--model_name", folder, "--output_dir", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["privacy"]["mechanism"] == "linear probing"
    assert metrics["privacy"]["private"] is False
    assert metrics["configuration"]["num_train"] == 40
    assert "guarantee       none: the head is fitted to the training samples" in capsys.readouterr().out
    assert 0 <= metrics["after"]["test"]["accuracy"] <= 1
