"""Every option of the sources' command as they spell it: accepted, or refused with its successor."""

from __future__ import annotations

import shlex

import pytest

from paczo.pac_arguments import PACArguments
from src.arguments import RunArguments
from src.tasks import get_task
from src.upstream import NONE_VALUES, REFUSED, RENAMED, translated
from src.utils import Parser, UserError

NEEDED = ["--output_dir", "x", "--max_steps", "2", "--report_to", "none", "--use_cpu", "True"]


def parsed(line, method="--pac_mi 0.33"):
    words, notes = translated([*NEEDED, *shlex.split(method), *shlex.split(line)])
    settings, args = Parser((RunArguments, PACArguments)).parse(words)
    settings.loss(get_task(settings.task_name))
    return {**vars(args), **vars(settings)}, notes


# What the sources' own defaults are, and another value: (words, setting here, its value).
ACCEPTED = [
    ("--task_name SST2", "task_name", "SST2"),
    ("--task_name trec", "task_name", "TREC"),
    ("--num_train 100", "num_train", 100),
    ("--num_dev None", "num_dev", 0),
    ("--num_dev 50", "num_dev", 50),
    ("--num_eval None", "num_eval", 0),
    ("--num_eval 200", "num_eval", 200),
    ("--num_train_sets 5", "num_train_sets", 5),
    ("--num_train_sets None", "num_train_sets", None),
    ("--train_set_seed 3", "train_set_seed", 3),
    ("--train_set_seed None", "train_set_seed", 0),
    ("--result_file a.json", "result_file", "a.json"),
    ("--result_file None", "result_file", None),
    ("--model_name facebook/opt-125m", "model_name", "facebook/opt-125m"),
    ("--load_float16", "dtype", "float16"),
    ("--load_float16 True", "dtype", "float16"),
    ("--load_float16 False", "dtype", "auto"),
    ("--load_bfloat16=True", "dtype", "bfloat16"),
    ("--load_int8 False", "dtype", "auto"),
    ("--max_length 512", "max_length", 512),
    ("--no_auto_device", "dtype", "auto"),
    ("--sfc", "sfc", True),
    ("--icl_sfc True", "icl_sfc", True),
    ("--trainer zo", "trainer", "zo"),
    ("--only_train_option False", "only_train_option", False),
    ("--train_as_classification", "train_as_classification", True),
    ("--train_as_classification --train_as_classification False", "train_as_classification", False),
    ("--zo_eps 1e-2", "zo_eps", 1e-2),
    ("--prefix_tuning", "prefix_tuning", True),
    ("--num_prefix 7", "num_prefix", 7),
    ("--no_reparam False", "no_reparam", False),
    ("--no_reparam", "no_reparam", True),
    ("--prefix_init_by_real_act False", "prefix_init_by_real_act", False),
    ("--lora", "lora", True),
    ("--lora_alpha 8", "lora_alpha", 8.0),
    ("--lora_r 4", "lora_r", 4),
    ("--sampling", "sampling", True),
    ("--temperature 0.7", "temperature", 0.7),
    ("--num_beams 4", "num_beams", 4),
    ("--top_k None", "top_k", None),
    ("--top_k 40", "top_k", 40),
    ("--top_p 0.9", "top_p", 0.9),
    ("--max_new_tokens 20", "max_new_tokens", 20),
    ("--eos_token .", "eos_token", "."),
    ("--save_model", "save_model", True),
    ("--no_eval", "no_eval", True),
    ("--tag mine", "tag", "mine"),
    ("--save_on_interrupt", "save_on_interrupt", True),
    ("--linear_probing --trainer regular", "linear_probing", True),
    ("--lp_early_stopping", "lp_early_stopping", True),
    ("--head_tuning --untie_emb", "untie_emb", True),
    ("--verbose", "verbose", True),
    ("--task_name SQuAD --non_diff", "non_diff", True),
    ("--pac_m 64", "pac_m", 64),
    ("--pac_secret_id -1", "pac_secret_seed", None),
    ("--pac_clip 10", "pac_clip", 10.0),
    ("--pac_k 4", "pac_k", 4),
    ("--pac_disjoint_pairs", "pac_disjoint_pairs", True),
    ("--pac_sampling_rate -1", "pac_sampling_rate", None),
    ("--pac_sampling_rate 32", "pac_sampling_rate", 32),
    ("--pac_adaptive_mi False", "pac_adaptive_mi", False),
    ("--pac_adaptive_mi", "pac_adaptive_mi", True),
    ("--pac_load_best_dev True --eval_steps 5", "load_best_model_at_end", True),
    ("--ablation none", "ablation", None),
    ("--evaluation_strategy steps --eval_steps 7", "eval_strategy", "steps"),
    ("--lr_scheduler_type polynomial", "lr_scheduler_type", "polynomial"),
    ("--overwrite_output_dir", "overwrite_output_dir", True),
    ("--no_cuda", "use_cpu", True),
    ("--warmup_ratio 0.1", "warmup_steps", 0.1),
    ("--per_device_train_batch_size 1000", "zo_inplace", False),
    ("--seed 7", "seed", 7),
]


@pytest.mark.parametrize(("line", "name", "value"), ACCEPTED)
def test_an_option_of_the_sources_says_here_what_it_says_there(line, name, value):
    assert parsed(line)[0][name] == value


@pytest.mark.parametrize(
    ("line", "method", "name", "value"),
    [
        ("", "--pac_mi 0.5", "pac_mi", 0.5),
        ("", "--pac_zpl True", "pac_zpl", True),
        ("--pac_zpl False", "--pac_mi 0.5", "pac_zpl", False),
        ("", "--no_privacy", "no_privacy", True),
        ("--ablation none", "--no_privacy True", "ablation", "none"),
        ("--ablation raw_half", "--no_privacy", "ablation", "raw_half"),
    ],
)
def test_the_mechanism_is_the_sources(line, method, name, value):
    assert parsed(line, method)[0][name] == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--load_int8", "use --dtype float16 or bfloat16"),
        ("--pac_secret_id 5", "use --pac_secret_seed"),
        ("--trainer regular", "use zo, or none"),
        ("--sharded_ddp simple", "use NUM_GPUS"),
        ("--logging_dir logs", "TENSORBOARD_LOGGING_DIR"),
        ("--jit_mode_eval", "use --torch_compile"),
        ("--non_diff", "SST2 has no loss non_diff: use --train_as_classification or --only_train_option"),
        ("--task_name SQuAD --sfc", "SQuAD has no SFC calibration"),
        ("--lora --prefix_tuning", "choose one track: --lora and --prefix_tuning exclude each other"),
        ("--train_as_classification --non_diff", "choose one loss"),
        ("--num_beams 0", "num_beams and top_k must be at least 1"),
        ("--num_dev -1", "num_dev must be at least 0"),
        ("--num_train_sets 2 --result_file a.json", "use --tag"),
        ("--train_on test", "train_on must be train or dev"),
        ("--train_on dev --num_dev 0", "needs dev samples"),
        ("--trainer none --num_dev 5", "drop --num_dev"),
        ("--linear_probing --train_as_classification", "drop the other loss"),
    ],
)
def test_what_is_not_offered_is_refused_with_its_successor(line, message):
    with pytest.raises(UserError) as refused:
        parsed(line)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_words_of_this_project_stay_as_they_are():
    line = (
        "--output_dir result/runs/a --task_name SST2 --dtype auto --opt_bos <s> --num_train 1000 --num_dev 500"
        " --train_set_seed 0 --seed 42 --lr_scheduler_type polynomial --eval_steps 100 --report_to none"
        ' --train_as_classification --pac_mi 0.33 --pac_load_best_dev --lr_scheduler_kwargs={"power":1.0}'
    )
    words, notes = translated(line.split())
    assert words[:-2] == line.split()[:-1]
    assert words[-2:] == ["--lr_scheduler_kwargs", '{"power":1.0}']
    assert notes == []


def test_every_translation_is_said_in_a_line():
    words, notes = translated(["--evaluation_strategy", "steps", "--load_float16", "--no_auto_device"])
    assert words == ["--eval_strategy", "steps", "--dtype", "float16"]
    assert notes == [
        "--evaluation_strategy is --eval_strategy here",
        "--load_float16 is --dtype float16 here",
        "--no_auto_device has no effect: each process has one device",
    ]


def test_translations_lead_to_options_that_exist():
    known = vars(PACArguments(output_dir="x", max_steps=1, pac_zpl=True, report_to="none")) | vars(RunArguments())
    for name in [*RENAMED.values(), *(name for name, _ in NONE_VALUES if name != "pac_secret_id")]:
        assert name in known, name
    assert not set(RENAMED) & set(known)


def test_all_training_arguments_of_the_sources_library_are_known():
    """Those that transformers 4.28 had and today's has no more."""
    gone = """
        evaluation_strategy per_gpu_train_batch_size per_gpu_eval_batch_size warmup_ratio logging_dir
        save_safetensors no_cuda use_mps_device jit_mode_eval use_ipex fp16_opt_level half_precision_backend
        xpu_backend tpu_num_cores tpu_metrics_debug past_index sharded_ddp fsdp_min_num_params
        fsdp_transformer_layer_cls_to_wrap adafactor group_by_length use_legacy_prediction_loop
        include_inputs_for_metrics fp16_backend push_to_hub_model_id push_to_hub_organization
        push_to_hub_token mp_parameters torchdynamo ray_scope
    """
    for name in gone.split():
        if name in REFUSED:
            with pytest.raises(UserError, match=f"--{name} is not offered: "):
                translated([f"--{name}", "1"])
            continue
        words, notes = translated([f"--{name}", "1"])
        assert f"--{name}" not in words
        assert len(notes) == 1
