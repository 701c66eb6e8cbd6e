"""The command lines of MeZO and PACZero, read as this project's.

What is spelled otherwise is translated, what is not offered is refused with its successor. Both took the training
arguments of transformers 4.28 besides their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.utils import UserError

# Same meaning, another name.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
}
# A switch, and the option and value that it stands for where it is on.
SWITCHES = {"load_float16": ("dtype", "float16"), "load_bfloat16": ("dtype", "bfloat16")}
# Values that say "none", and what says so here; None for leaving the option out.
NONE_VALUES: dict[tuple[str, str], str | None] = {
    ("pac_secret_id", "-1"): None,
    ("pac_sampling_rate", "-1"): None,
    ("ablation", "none"): None,
    ("num_dev", "none"): "0",
    ("num_eval", "none"): "0",
    **{(name, "none"): None for name in ("num_train_sets", "train_set_seed", "result_file", "top_k", "pac_mi")},
}
# Read, without any effect here.
IDLE = {
    "no_auto_device": "each process has one device",
    "per_device_train_batch_size": "a step uses every sample, and --token_budget bounds a pass",
    "per_device_eval_batch_size": "--token_budget bounds a pass",
    "save_safetensors": "weights are always saved so",
    "use_mps_device": "the device is found by itself",
    "include_inputs_for_metrics": "metrics are the task's own",
    "past_index": "no model here has one",
    "tpu_num_cores": "there is no TPU support",
    "tpu_metrics_debug": "there is no TPU support",
    "mp_parameters": "there is no SageMaker support",
    "ray_scope": "there is no search over hyperparameters",
    "xpu_backend": "processes talk over NCCL or gloo",
    "use_legacy_prediction_loop": "evaluation is the task's own",
}
_PRECISION = "use --dtype float16 or bfloat16"
_SHARDING = "a process holds the whole model: use NUM_GPUS to share the samples"
REFUSED = {
    "load_int8": f"steps far below the spacing of 8-bit weights would change nothing; {_PRECISION}",
    "pac_secret_id": "a secret on the command line is none; use --pac_secret_seed for reproducible secrets",
    "adafactor": "a step applies a record and has no optimizer",
    "fp16_opt_level": _PRECISION,
    "fp16_backend": _PRECISION,
    "half_precision_backend": _PRECISION,
    "jit_mode_eval": "use --torch_compile",
    "use_ipex": "use --torch_compile",
    "sharded_ddp": _SHARDING,
    "fsdp_min_num_params": _SHARDING,
    "fsdp_transformer_layer_cls_to_wrap": _SHARDING,
    "group_by_length": "samples are always sorted by length",
    "logging_dir": "set the variable TENSORBOARD_LOGGING_DIR",
    "push_to_hub_organization": "write the organization into --hub_model_id",
}


def translated(words: Sequence[str], renamed: Mapping[str, str] = {}) -> tuple[list[str], list[str]]:
    """The words as this project's options, and a line on each that was read otherwise than it stands.

    Args:
        renamed: more names that are spelled otherwise here; they come before all others.

    Raises:
        UserError: an option is not offered; the line names what to use.
    """
    result: list[str] = []
    notes: list[str] = []
    for name, values in _options(words):
        if name in renamed:
            notes.append(f"--{name} is --{renamed[name]} here")
            result += [f"--{renamed[name]}", *values]
        else:
            result += _option(name, values, notes)
    return result, notes


def _option(name: str, values: list[str], notes: list[str]) -> list[str]:
    """The words of one option; a line is added to `notes` where they change."""
    value = values[0].lower() if values else "true"
    if (name, value) in NONE_VALUES:
        instead = NONE_VALUES[name, value]
        return [] if instead is None else [f"--{name}", instead]
    if name in SWITCHES:
        if value not in ("true", "1", "yes"):
            return []
        option, chosen = SWITCHES[name]
        notes.append(f"--{name} is --{option} {chosen} here")
        return [f"--{option}", chosen]
    if name in REFUSED:
        if value == "false":
            return []
        raise UserError(f"--{name} is not offered: {REFUSED[name]}")
    if name in IDLE:
        notes.append(f"--{name} has no effect: {IDLE[name]}")
        return []
    if name in RENAMED:
        notes.append(f"--{name} is --{RENAMED[name]} here")
        return [f"--{RENAMED[name]}", *values]
    return [f"--{name}", *values] if name else values


def _options(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each option's name and values; words in front of the first option have the name ""."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.append((name, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            found.append(("", [word]))
    return found
