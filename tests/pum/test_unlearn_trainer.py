"""The trainer around the inner methods: rows, reference, recipe, errors, and the check for identical results."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from builders import make_model, make_tokenizer

from pum.unlearn import METHODS, get_method
from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.base import IGNORED, Reference, answer_logits, token_nll
from pum.unlearn.data import PairedRows, UnlearnData
from pum.unlearn.trainer import UnlearnTrainer, WholeSteps, set_warmup, steps_an_epoch
from src.lora import LoraSettings, add_lora
from src.tofu.prompts import collate, encode_rows
from src.utils import UserError

NAMES = ["GradAscent", "GradDiff", "NPO", "DPO", "SimNPO", "RMU", "UNDIAL", "CEU", "WGA", "SatImp", "PDU"]
FORGET = [
    {"question": f"was the {a} film", "answer": f"it was {b} and {a}"}
    for a, b in pairwise(["dull", "warm", "cold", "slow", "bright"])
]
RETAIN = [
    {"question": f"was the {a} plot", "answer": f"so very {a}"}
    for a in ["dull", "warm", "cold", "slow", "bright", "good", "bad"]
]


def make_data(refusals=("It was so bad",)):
    tokenizer = make_tokenizer()
    return UnlearnData(
        encode_rows(tokenizer, FORGET, refusal_texts=list(refusals)), encode_rows(tokenizer, RETAIN)
    )


def make_args(folder, method="NPO", **settings):
    settings = {
        "learning_rate": 1e-3,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        **settings,
    }
    return UnlearnArguments(output_dir=str(folder), method=method, **settings)


def mean_nll(model, rows):
    with torch.no_grad():
        batch = collate(rows)
        nll, mask = token_nll(model(batch["input_ids"]).logits, batch["labels"])
    return float(nll.sum() / mask.sum())


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_registry_names_eleven_methods():
    assert list(METHODS) == NAMES
    with pytest.raises(UserError, match=r"unknown unlearning method 'Npo'; known: GradAscent, .*PDU"):
        get_method("Npo")


@pytest.mark.parametrize("method", NAMES)
def test_every_method_trains_in_place_and_forgets(method, tmp_path):
    model, data = make_model("llama"), make_data()
    before, start = mean_nll(model, data.forget), parameters(model)
    trainer = UnlearnTrainer(model, make_args(tmp_path / method, method, num_train_epochs=10), data)
    trainer.train()
    assert trainer.model is model
    assert not model.training
    assert not torch.equal(parameters(model), start)
    if method not in ("RMU", "SatImp", "PDU"):  # these do not aim at the answer's likelihood itself
        assert mean_nll(model, data.forget) > before


@pytest.mark.parametrize("method", ["DPO", "RMU"])  # one asks for logits, one for hidden states
def test_activation_checkpointing_changes_no_bit(method, tmp_path):
    results = []
    for checkpointing in (True, False):
        model = make_model("llama")
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # the library's, of the option's older name
            args = make_args(tmp_path, method, gradient_checkpointing=checkpointing, max_steps=2)
        calls = 0

        def count(*_):
            nonlocal calls
            calls += torch.is_grad_enabled()

        model.model.layers[0].mlp.register_forward_pre_hook(count)
        UnlearnTrainer(model, args, make_data()).train()
        results.append((parameters(model), calls))
    (checkpointed, more), (plain, calls) = results
    assert torch.equal(checkpointed, plain)
    assert more == 2 * calls > 0


def test_activation_checkpointing_trains_adapters_too(tmp_path):
    results = []
    for checkpointing in (True, False):
        model = add_lora(make_model("llama"), LoraSettings(2, 4.0, seed=0))
        args = make_args(tmp_path, gradient_checkpointing=checkpointing, max_steps=2)
        before = parameters(model)
        UnlearnTrainer(model, args, make_data()).train()
        assert not torch.equal(parameters(model), before)
        results.append(parameters(model))
    assert torch.equal(*results)


def test_pairs_come_from_a_generator_of_their_own():
    data = make_data()
    state = torch.get_rng_state()
    drawn = [PairedRows(data, 1)[i]["retain"]["input_ids"] for i in range(4)]
    assert torch.equal(torch.get_rng_state(), state)
    rows = PairedRows(data, 1)
    sequence = [rows[i % 4]["retain"]["input_ids"] for i in range(200)]
    assert sequence[0] == drawn[0]
    assert {tuple(ids) for ids in sequence} == {tuple(row["input_ids"]) for row in data.retain}


def test_refusals_are_drawn_anew_at_each_access_from_the_seed():
    data = make_data(("It was so bad", "so slow", "very dull"))
    encoded = [tuple(item["input_ids"]) for item in data.forget[0]["refusals"]]

    def drawn(seed):
        rows = PairedRows(data, seed)
        return [encoded.index(tuple(rows[0]["refusal"]["input_ids"])) for _ in range(40)]

    assert set(drawn(1)) == {0, 1, 2}
    assert drawn(1) == drawn(1) != drawn(2)


def test_two_runs_are_equal_whatever_the_global_generator_does(tmp_path):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = make_model("llama")
        trainer = UnlearnTrainer(model, make_args(tmp_path / "a"), make_data())
        torch.manual_seed(seed + 10)
        trainer.train()
        results.append(parameters(model))
    assert torch.equal(*results)


def test_accumulated_micro_batches_take_the_step_of_one_batch(tmp_path):
    results = []
    for batch, accumulation in ((4, 1), (2, 2)):
        model = make_model("llama")
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        args = make_args(tmp_path, "NPO", alpha=0.0, optim="sgd", max_steps=1, warmup_epochs=0, **settings)
        UnlearnTrainer(model, args, make_data()).train()
        results.append(parameters(model))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_the_reference_stays_and_has_no_gradient():
    model = make_model("opt").train()  # with dropout
    batch = {"input_ids": torch.tensor([[0, 5, 6, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    expected = copy.deepcopy(model).eval()(**batch).logits
    reference = Reference(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    output = reference(**batch).logits
    assert not output.requires_grad
    assert model.training
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_logits_begin_where_the_first_answer_is_predicted(architecture):
    """The same losses as with the logits of prompts and padding, and as many answer tokens."""
    model = make_model(architecture)
    rows = collate([{"input_ids": ids, "labels": labels} for ids, labels in (
        ([0, 5, 6, 7, 8], [IGNORED] * 3 + [7, 8]),
        ([0, 5, 9], [IGNORED] * 2 + [9]),
    )])  # fmt: skip
    logits, labels = answer_logits(model, rows)
    whole = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    assert logits.shape == (2, 4, whole.shape[2])
    torch.testing.assert_close(logits, whole[:, 1:])
    nll, mask = token_nll(logits, labels)
    every, everywhere = token_nll(whole, rows["labels"])
    torch.testing.assert_close(nll.sum(dim=1), every.sum(dim=1))
    assert mask.sum() == everywhere.sum() == 3
    nothing = {**rows, "labels": torch.full_like(rows["labels"], IGNORED)}
    assert answer_logits(model, nothing)[0].shape == whole.shape
    text = {**rows, "labels": rows["input_ids"]}  # of plain text all tokens are scored
    assert answer_logits(model, text)[0].shape == whole.shape


def test_with_lora_the_reference_is_the_base_with_adapters_disabled():
    model = make_model("llama")
    batch = {"input_ids": torch.tensor([[0, 5, 6, 7]])}
    base = model(**batch).logits
    wrapped = add_lora(model)
    reference = Reference(wrapped)
    assert all("lora" in name for name in reference.parameters)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    assert not torch.allclose(wrapped(**batch).logits, base)
    torch.testing.assert_close(reference(**batch).logits, base)


def test_only_methods_that_compare_hold_a_reference(tmp_path):
    model = make_model("llama")

    def has_reference(method, **settings):
        return get_method(method)(make_args(tmp_path, method, **settings), model).reference is not None

    assert [name for name in NAMES if has_reference(name)] == ["NPO", "DPO", "RMU", "UNDIAL"]
    assert has_reference("GradDiff", retain_loss_type="KL")
    assert not has_reference("GradDiff", retain_loss_type="KL", alpha=0.0)


def test_defaults_are_the_specified_ones(tmp_path):
    expected = {
        "GradDiff": {"gamma": 1, "alpha": 1},
        "NPO": {"beta": 0.1},
        "DPO": {"beta": 0.1},
        "SimNPO": {"beta": 4.5, "delta_simnpo": 0, "gamma": 0.125},
        "RMU": {"rmu_coeff": 2},
        "UNDIAL": {"beta": 10, "alpha": 0},
        "WGA": {"beta": 1},
        "SatImp": {"satimp_beta1": 5, "satimp_beta2": 1, "gamma": 0.1},
        "CEU": {"gamma": 1, "alpha": 0},
        "PDU": {
            "gamma": 1,
            "alpha": 50,
            "pdu_retain_loss_eps": 0.3,
            "pdu_step": 5,
            "pdu_warmup_epochs": 5,
        },
    }
    for method, values in expected.items():
        assert values.items() <= METHODS[method].defaults.items()
    assert "alpha" not in METHODS["GradAscent"].defaults
    for method in NAMES:
        args = UnlearnArguments(output_dir=str(tmp_path), method=method, use_cpu=True)
        assert args.num_train_epochs == (5 if method in ("WGA", "SatImp") else 10)
        assert (args.learning_rate, args.weight_decay, args.optim) == (1e-5, 0.01, "adamw_torch")
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 32


def test_warm_up_is_one_epoch_and_at_most_half_of_the_run(tmp_path):
    trainer = UnlearnTrainer(make_model("llama"), make_args(tmp_path, num_train_epochs=10), make_data())
    trainer.train()
    assert trainer.args.warmup_steps == 2  # four rows, batch 2
    trainer = UnlearnTrainer(make_model("llama"), make_args(tmp_path, max_steps=1), make_data())
    trainer.train()
    assert trainer.args.warmup_steps == 0


def test_steps_are_counted_as_open_unlearning_counts_them(tmp_path):
    """forget10's 400 rows are 50 micro-batches of 8: 12 steps of 4 an epoch; two micro-batches are left over."""
    assert [steps_an_epoch(rows, 8, 4) for rows in (400, 200, 40, 8)] == [12, 6, 1, 1]
    rows = WholeSteps(400, 8, 4, seed=1)
    first, second = list(rows), list(rows)
    assert len(rows) == len(first) == len(set(first)) == 384
    again = WholeSteps(400, 8, 4, seed=1)
    assert (list(again), list(again)) == (first, second)
    assert set(first) | set(second) > set(first)
    assert sorted(WholeSteps(20, 8, 4, seed=1)) == list(range(20))  # less than a step: all of them
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    args = make_args(tmp_path, num_train_epochs=4, **batch)
    trainer = UnlearnTrainer(make_model("llama"), args, make_data())
    trainer.train()
    assert trainer.state.global_step == 4
    args.warmup_steps = 0
    set_warmup(args, 1.0, 400, 120)
    assert args.warmup_steps == 60  # one epoch of 133 steps, and at most half of the run
    recipe = UnlearnArguments(output_dir=str(tmp_path), use_cpu=True)
    set_warmup(recipe, 1.0, 400, 120)
    assert recipe.warmup_steps == 12


def test_a_trainer_lets_go_of_what_it_held(tmp_path):
    trainer = UnlearnTrainer(make_model("llama"), make_args(tmp_path), make_data())
    trainer.train()
    assert trainer.optimizer is None
    assert trainer.method.reference is None
    assert trainer.accelerator._optimizers == []
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_given_reference_is_shared(tmp_path):
    model, other = make_model("llama"), make_model("llama", seed=3)
    given = {name: parameter.detach() for name, parameter in other.named_parameters()}
    trainer = UnlearnTrainer(model, make_args(tmp_path), make_data(), reference=given)
    assert all(trainer.method.frozen.parameters[name] is tensor for name, tensor in given.items())
    batch = {"input_ids": torch.tensor([[0, 5, 6, 7]])}
    torch.testing.assert_close(trainer.method.frozen(**batch).logits, other(**batch).logits)


def test_method_arguments_in_one_text(tmp_path, capsys):
    args = make_args(tmp_path, "SimNPO", method_args="delta=0.5 beta=3 gamma=0.25 retain_loss_type=KL")
    assert (args.delta_simnpo, args.beta, args.gamma, args.retain_loss_type) == (0.5, 3.0, 0.25, "KL")
    args = make_args(tmp_path, "RMU", method_args="rmu_layer=1 steering_coeff=3 delta=0", skip_foreign_args=True)
    assert (args.rmu_layer, args.rmu_coeff, args.delta_simnpo) == (1, 3.0, None)
    assert capsys.readouterr().err == "note: RMU has no delta, which is skipped\n"
    args = make_args(tmp_path, "PDU", method_args="retain_loss_eps=0.1 dual_step_size=2 dual_warmup_epochs=3")
    assert (args.pdu_retain_loss_eps, args.pdu_step, args.pdu_warmup_epochs) == (0.1, 2.0, 3.0)
    args = make_args(tmp_path, "SatImp", method_args="beta1=4 beta2=2")
    assert (args.satimp_beta1, args.satimp_beta2) == (4.0, 2.0)
    for method, text, message in (
        ("RMU", "delta=0", "RMU has no setting delta_simnpo"),
        ("NPO", "betta=1", "'betta=1' is not name=value with a name of gamma, alpha, beta"),
        ("NPO", "beta", "beta must be a number, got ''"),
        ("RMU", "rmu_layer=1.5", "rmu_layer must be a number, got '1.5'"),
        ("NPO", "beta=1 beta=2", "beta is given twice"),
    ):
        with pytest.raises(UserError, match=message):
            make_args(tmp_path, method, method_args=text)
    with pytest.raises(UserError, match="beta is given twice"):
        make_args(tmp_path, "NPO", method_args="beta=1", beta=2.0)


def test_workers_that_would_draw_the_same_rows_are_refused(tmp_path):
    with pytest.raises(UserError, match="dataloader_num_workers must be 0"):
        make_args(tmp_path, dataloader_num_workers=2)


def test_pdu_moves_its_multiplier_after_the_warm_up(tmp_path):
    settings = {"alpha": 1.0, "pdu_step": 2.0, "pdu_retain_loss_eps": 0.0, "pdu_warmup_epochs": 1.0}
    args = make_args(tmp_path, "PDU", num_train_epochs=2, **settings)
    trainer = UnlearnTrainer(make_model("llama"), args, make_data())
    retain_losses = []
    original = trainer.method.retain_loss

    def recording(model, rows):
        loss = original(model, rows)
        retain_losses.append(float(loss))
        return loss

    trainer.method.retain_loss = recording
    trainer.train()
    assert len(retain_losses) == 4
    # Two steps an epoch: the second one ends the warm-up, those after it count.
    assert trainer.method.alpha == pytest.approx(1.0 + 2.0 * sum(retain_losses[2:]))


def test_identical_results_of_two_methods_raise_a_warning(tmp_path):
    def run(method, folder):
        args = make_args(tmp_path / folder, method, learning_rate=0.0, weight_decay=0.0)
        UnlearnTrainer(make_model("llama"), args, make_data()).train()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("NPO", "first")
        run("NPO", "again")
    with pytest.warns(UserWarning, match="GradDiff ended with the same parameters as NPO in .*again"):
        run("GradDiff", "other")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "MUON"}, "unknown unlearning method 'MUON'; known: GradAscent"),
        ({"method": "GradDiff", "beta": 0.1}, "GradDiff has no setting beta; it has gamma, alpha"),
        ({"method": "GradAscent", "alpha": 1.0}, "GradAscent has no setting alpha"),
        ({"retain_loss_type": "MSE"}, "unknown retain_loss_type 'MSE': use NLL or KL"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make_args(tmp_path, **{"method": "NPO", **settings})


def test_wrong_data_are_refused(tmp_path):
    data, model = make_data(), make_model("llama")
    with pytest.raises(UserError, match="the forget set is empty"):
        UnlearnTrainer(model, make_args(tmp_path), UnlearnData([], data.retain))
    with pytest.raises(UserError, match="NPO needs a retain set"):
        UnlearnTrainer(model, make_args(tmp_path), UnlearnData(data.forget, []))
    with pytest.raises(UserError, match="DPO needs a refusal for each forget row"):
        UnlearnTrainer(model, make_args(tmp_path, "DPO"), UnlearnData(data.retain, data.retain))
    with pytest.raises(UserError, match="rmu_layer 7 is outside the model's 2 layers"):
        UnlearnTrainer(model, make_args(tmp_path, "RMU", rmu_layer=7), data)


def test_a_loss_that_is_not_finite_is_one_line(tmp_path):
    model = make_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="NPO: the loss of step 1 is nan; lower --learning_rate"):
        UnlearnTrainer(model, make_args(tmp_path), make_data()).train()


@pytest.mark.parametrize("with_refusals", [False, True])
def test_processes_draw_what_one_would_draw(with_refusals: bool) -> None:
    """Two processes get the batches of two rows in turn; 5 retain rows, 3 refusals."""
    rows = [{"input_ids": [i]} for i in range(5)]
    forget = [{"input_ids": [i], **({"refusals": rows[:3]} if with_refusals else {})} for i in range(8)]
    data = UnlearnData(forget, rows)
    one = PairedRows(data, 3)
    expected = [one[i] for i in range(8)]
    for rank in (0, 1):
        share = PairedRows(data, 3, batch=2, place=(rank, 2))
        for i in range(8):
            if i // 2 % 2 == rank:
                assert share[i] == expected[i]
