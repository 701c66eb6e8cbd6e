"""Training runs from the command line: every task, the sources' own lines, and what a run leaves behind."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from baselines import run_dp_zo
from paczo import run_paczo
from src import sample_data, tasks, transcript
from src.interrupt import StopOnSignal
from src.models import load_model
from src.tasks import TASKS, draw, get_task
from src.utils import UserError

SAMPLE_DATA = Path(sample_data.__file__).parent


pytestmark = pytest.mark.usefixtures("sample_data_here")


def launch(text_model, *words, main=run_paczo.main, method=("--pac_zpl",)):
    fixed = ["--model_name", text_model, "--output_dir", "run", "--pac_m", "8", "--max_steps", "3"]
    if main is not run_paczo.main:
        fixed, method = fixed[:4] + fixed[6:], ()
    sizes = ["--num_train", "8", "--num_dev", "4", "--num_eval", "4", "--max_new_tokens", "4"]
    common = ["--learning_rate", "1e-3", "--report_to", "none", "--use_cpu", "True"]
    main([*fixed, *sizes, *common, *method, *words])


def train(text_model, *words, **how):
    launch(text_model, *words, **how)
    return json.loads(Path("run/metrics.json").read_text())


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_and_can_be_replayed(name, text_model):
    task = TASKS[name]
    loss = "non_diff" if task.generates else "train_as_classification"
    if task.name in ("Copa", "ReCoRD"):
        loss = "only_train_option"
    metrics = train(text_model, "--task_name", name, f"--{loss}")
    assert metrics["steps"] == 3
    assert metrics["configuration"]["task_name"] == task.name
    assert metrics["configuration"]["loss"] == loss
    for moment in ("before", "after"):
        for split in ("dev", "test"):
            assert set(metrics[moment][split]) == {"loss", "f1" if task.generates else "accuracy"}
    model, _ = load_model(text_model)
    transcript.replay(model, "run/transcript.jsonl")


@pytest.mark.filterwarnings("ignore:.* lose their beginning")
@pytest.mark.parametrize("name", TASKS)
def test_every_task_takes_a_step_on_real_rows(name, text_model, data_dir, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(data_dir))
    loss = "non_diff" if TASKS[name].generates else "train_as_classification"
    sizes = ["--num_train", "6", "--num_dev", "2", "--num_eval", "2", "--max_steps", "1", "--max_length", "400"]
    metrics = train(text_model, "--task_name", name, f"--{loss}", *sizes)
    assert metrics["steps"] == 1
    assert metrics["data"] == str(data_dir)


# What the sources' scripts run, but for the model, the folder and the sizes.
PACZERO = (
    "--task_name SST2 --output_dir out/checkpoints --result_file out/metrics.json --tag cell --train_set_seed 1"
    " --num_train 24 --num_dev 8 --num_eval 8 --max_steps 4 --logging_steps 20 --eval_steps 2 --trainer zo"
    " --load_float16 --learning_rate 1e-2 --zo_eps 1e-3 --lr_scheduler_type polynomial --evaluation_strategy steps"
    " --per_device_train_batch_size 1000 --pac_m 8 --pac_clip 1000 --overwrite_output_dir"
    " --train_as_classification"
)
MEZO = (
    "--task_name Copa --output_dir out/checkpoints --tag mezo-ft-20000-16-1e-5-1e-3-0 --train_set_seed 0"
    " --num_train 10 --num_dev 6 --num_eval 8 --logging_steps 10 --max_steps 4 --trainer zo --load_bfloat16"
    " --learning_rate 1e-2 --zo_eps 1e-3 --per_device_train_batch_size 16 --lr_scheduler_type constant"
    " --load_best_model_at_end --evaluation_strategy steps --save_strategy steps --save_total_limit 1"
    " --eval_steps 2 --save_steps 2 --train_as_classification --train_as_classification False"
)
ICL = "--task_name RTE --output_dir out/checkpoints --tag icl --num_train 3 --num_eval 5 --load_float16 --verbose"


@pytest.mark.parametrize(
    ("line", "more", "loss", "flat"),
    [
        (
            PACZERO,
            "--pac_mi 0.33 --pac_adaptive_mi True --pac_load_best_dev True",
            "train_as_classification",
            "out/metrics.json",
        ),
        (PACZERO, "--lora --pac_zpl True --pac_load_best_dev True", "train_as_classification", "out/metrics.json"),
        (PACZERO, "--no_privacy True --ablation none", "train_as_classification", "out/metrics.json"),
        (
            MEZO,
            "--no_privacy",
            "only_train_option",
            "result/Copa-{}-sampleeval8-ntrain10-ndev6-mezo-ft-20000-16-1e-5-1e-3-0-trainset0.json",
        ),
        (ICL, "--trainer none", None, "result/RTE-{}-sampleeval5-ntrain3-icl-onetrainpereval.json"),
    ],
    ids=["pac-mi", "pac-zpl", "no privacy", "mezo", "icl"],
)
def test_the_sources_own_command_lines_run(line, more, loss, flat, text_model, capsys):
    run_paczo.main(
        [*line.split(), *more.split(), "--model_name", text_model, "--use_cpu", "True", "--report_to", "none"]
    )
    metrics = json.loads(Path("out/checkpoints/metrics.json").read_text())
    assert metrics["configuration"]["loss"] == loss
    assert metrics["configuration"]["dtype"] == ("torch.bfloat16" if line is MEZO else "torch.float16")
    scores = json.loads(Path(flat.format(Path(text_model).name)).read_text())
    after = metrics["after"]
    expected = {"accuracy": after["test"]["accuracy"]}
    if line is not ICL:
        expected["dev_accuracy"] = after["dev"]["accuracy"]
        assert metrics["steps"] == 4
    assert scores == expected
    assert "note: --load_" in capsys.readouterr().err


@pytest.mark.parametrize(("main", "option"), [(run_paczo.main, "--pac_mi"), (run_dp_zo.main, "--dp_epsilon")])
def test_help_shows_every_option(main, option, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in (option, "--task_name", "--train_on", "--max_steps", "--sfc"))


def test_the_drawn_samples_are_the_sources(text_model, capsys):
    train(text_model, "--task_name", "SST2", "--train_set_seed", "3", "--verbose")
    rows = (SAMPLE_DATA / "sst2/validation.jsonl").read_text().splitlines()
    said = capsys.readouterr().out
    for index in draw(len(rows), 4, 3):
        assert f"\n{get_task('SST2').sample(json.loads(rows[index])).prompt}\n=== answer " in said
    assert said.count("=== sample ") == 4


def test_without_a_dev_set_the_last_model_is_tested(text_model):
    metrics = train(text_model, "--num_dev", "0")
    assert metrics["after"]["dev"] == {}
    assert set(metrics["after"]["test"]) == {"loss", "accuracy"}
    assert metrics["best_step"] in (None, 0)
    for words in (["--pac_load_best_dev", "--eval_steps", "1"], ["--eval_strategy", "steps", "--eval_steps", "1"]):
        with pytest.raises(UserError, match="on a dev set, and this run has none"):
            train(text_model, "--num_dev", "none", *words, "--overwrite_output_dir")


def test_the_dev_set_alone_is_a_public_baseline(text_model, capsys):
    metrics = train(text_model, "--train_on", "dev", method=("--no_privacy",))
    assert metrics["label"] == "trained on the public dev set"
    assert "trained on the public dev set" in capsys.readouterr().out
    assert metrics["after"]["dev"] == {}
    head, _ = transcript.read(Path("run/transcript.jsonl"))
    assert head["public"]["train_on"] == "dev"
    assert head["public"]["num_samples"] == 4, "the dev samples"
    with pytest.raises(UserError, match="this run has none"):
        train(
            text_model, "--train_on", "dev", "--pac_load_best_dev", "--eval_steps", "1", "--overwrite_output_dir"
        )


@pytest.mark.parametrize("track", [[], ["--lora"]], ids=["full", "lora"])
def test_the_trained_model_is_saved(track, text_model):
    train(text_model, "--save_model", *track)
    model, _ = load_model(text_model)
    replayed = transcript.replay(model, "run/transcript.jsonl")
    base, tokenizer = load_model(text_model if track else "run/model")
    saved = PeftModel.from_pretrained(base, "run/model") if track else base
    expected = dict(replayed.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in saved.named_parameters())
    assert tokenizer("Yes")["input_ids"]
    assert Path("run/model/README.md").exists(), "the card that says what the run guarantees"
    names = {path.name for path in Path("run/model").iterdir()}
    assert ("adapter_model.safetensors" if track else "model.safetensors") in names
    with pytest.raises(UserError, match="already holds a run"):
        train(text_model)


def test_a_run_may_leave_out_its_evaluations(text_model):
    metrics = train(text_model, "--no_eval")
    assert metrics["before"] == metrics["after"] == {"dev": {}, "test": {}}
    assert metrics["steps"] == 3


def test_the_texts_likelihood_and_the_token_budget_reach_the_objective(text_model):
    whole = train(text_model, "--only_train_option", "False", "--token_budget", "200")
    assert whole["configuration"]["loss"] == "full_text"
    assert whole["configuration"]["token_budget"] == 200
    assert train(text_model, "--overwrite_output_dir")["configuration"]["loss"] == "only_train_option"


def test_a_signal_ends_the_run_between_two_steps_and_it_goes_on(text_model, monkeypatch, capsys):
    begun = StopOnSignal.on_step_end
    sent = []

    def step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGUSR1))
        begun(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", step_end)
    handler = signal.getsignal(signal.SIGUSR1)
    words = ["--save_on_interrupt", "--pac_secret_seed", "1", "--max_steps", "5"]
    with pytest.raises(KeyboardInterrupt):
        train(text_model, *words)
    assert "SIGUSR1: stopped after step 2, which is on disk" in capsys.readouterr().err
    assert not Path("run/metrics.json").exists()
    assert signal.getsignal(signal.SIGUSR1) == handler
    again = train(text_model, *words, "--resume_from_checkpoint", "True")
    Path("run").rename("other")
    whole = train(text_model, *words)
    assert again["after"] == whole["after"]
    assert Path("run/transcript.jsonl").read_text() == Path("other/transcript.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "trained"),
    [
        (["--prefix_tuning", "--num_prefix", "3"], 2 * 2 * 3 * 32),
        (["--head_tuning", "--untie_emb"], 2 * 32),
        (["--lora", "--lora_r", "2", "--lora_layers", "last:1"], 2 * 2 * (32 + 32)),
    ],
)
def test_tracks_are_trained_and_replayed(words, trained, text_model):
    found = train(text_model, *words, "--pac_zpl_abstain", "--zo_derivative", "exact", "--pac_k", "3")
    assert found["privacy"]["spent_nats"] == 0
    head = transcript.load("run/transcript.jsonl").head["start"]["parameters"]
    assert sum(math.prod(entry["shape"]) for entry in head) == trained
    model, _ = load_model(text_model)
    transcript.replay(model, "run/transcript.jsonl")


def test_answers_are_sampled_in_evaluation_only(text_model, monkeypatch):
    """The two losses of a pair would differ by chance, so training generates greedily."""
    plain, seen = tasks.GenerationF1, []

    def recorded(*args, decoding, **kwargs):
        seen.append(decoding.sampling)
        return plain(*args, decoding=decoding, **kwargs)

    monkeypatch.setattr(tasks, "GenerationF1", recorded)
    train(text_model, "--task_name", "SQuAD", "--non_diff", "--sampling")
    assert seen == [False, True, True], "train, dev, test"


def test_an_untied_head_belongs_to_its_track(text_model):
    with pytest.raises(UserError, match="--untie_emb belongs to --head_tuning"):
        train(text_model, "--lora", "--untie_emb")


def test_several_train_sets_are_trained_on_one_after_another(text_model):
    launch(text_model, "--num_train_sets", "2", "--tag", "t")
    assert not Path("run").exists()
    found = [json.loads(Path(f"run-trainset{number}/metrics.json").read_text()) for number in (0, 1)]
    assert [one["configuration"]["train_set_seed"] for one in found] == [0, 1]
    heads = [transcript.read(Path(f"run-trainset{number}/transcript.jsonl"))[0]["public"] for number in (0, 1)]
    assert [head["train_set_seed"] for head in heads] == [0, 1]
    assert len(list(Path("result").glob("SST2-*-t-trainset[01].json"))) == 2


def test_the_baselines_take_the_same_words(text_model):
    words = ["--task_name", "cb", "--train_as_classification", "--load_float16", "False", "--dp_epsilon", "6"]
    metrics = train(
        text_model, *words, "--dp_sample_rate", "0.5", "--result_file", "flat.json", main=run_dp_zo.main
    )
    assert metrics["configuration"]["task_name"] == "CB"
    assert set(json.loads(Path("flat.json").read_text())) == {"accuracy", "dev_accuracy"}


def test_a_dp_run_does_not_say_how_many_tokens_its_rows_have(text_model):
    words = ["--task_name", "SST2", "--train_as_classification", "--lora", "--lora_layers", "last:1"]
    words += ["--zo_derivative", "exact", "--dp_epsilon", "6", "--dp_sample_rate", "0.9"]
    metrics = train(text_model, *words, main=run_dp_zo.main)
    model, tokenizer = load_model(text_model)
    dev = get_task("SST2").splits(str(SAMPLE_DATA), num_train=8, num_dev=4, num_eval=4, train_set_seed=0).dev
    public = get_task("SST2").objective(model, tokenizer, dev).num_tokens
    assert metrics["kept_front"] == {"layers": 1, "bytes": public * model.config.hidden_size * 4}


def test_a_dp_run_does_not_say_which_rows_are_long_or_how_many_there_are(text_model, recwarn):
    words = ["--task_name", "CB", "--train_as_classification", "--dp_epsilon", "6", "--num_train", "30"]
    train(text_model, *words, "--max_length", "60", "--num_dev", "0", main=run_dp_zo.main)
    said = [str(one.message) for one in recwarn if "lose their beginning" in str(one.message)]
    assert [text.split()[2] for text in said] == ["4"]  # of the test set, which is public
    with pytest.raises(UserError, match="a training row does not fit the model; which one, and why, is not said"):
        train(
            text_model, *words, "--no_truncation", "--max_length", "60", "--output_dir", "b", main=run_dp_zo.main
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task_name", "CB", "--num_dev", "30", "--num_train", "20"], "CB has 36 training rows, fewer than"),
        (["--task_name", "DROP", "--train_as_classification"], "DROP has no loss train_as_classification"),
        (["--report_to", "wandbb"], "--report_to wandbb: wandbb is not supported"),
        (
            ["--output_dir", "/etc/hostname/run"],
            "cannot use the output folder /etc/hostname/run: /etc/hostname is no",
        ),
        (["--task_name", "Copa", "--max_length", "9"], "Copa does not fit"),
        (["--task_name", "WIC", "--no_truncation", "--max_length", "40"], "the model takes 40"),
        (["--task_name", "SQuAD", "--non_diff", "--max_length", "4"], "leave no room"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(words, message, text_model, tmp_path):
    with pytest.raises(UserError) as refused:
        train(text_model, *words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
