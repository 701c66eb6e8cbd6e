"""Whether a run is a cell of the paper: its settings must be those that the cell's script shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paczo.cells import DP_METHODS, Cell, variables

# Variable of a cell's script -> the setting that it becomes, and the type of that.
SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "TASK": ("task_name", str),
    "LOSS": ("loss", str),
    "MAX_NEW_TOKENS": ("max_new_tokens", int),
    "MODEL": ("model_name", str),
    "OPT_BOS": ("opt_bos", str),
    "LORA_R": ("lora_r", int),
    "LORA_ALPHA": ("lora_alpha", float),
    "LORA_LAYERS": ("lora_layers", str),
    "MI": ("pac_mi", float),
    "PAC_CHARGE": ("pac_charge", str),
    "ABLATION": ("ablation", str),
    "PAC_M": ("pac_m", int),
    "PAC_K": ("pac_k", int),
    "DP_K": ("dp_k", int),
    "EPSILON": ("dp_epsilon", float),
    "DELTA": ("dp_delta", float),
    "SAMPLE_RATE": ("dp_sample_rate", float),
    "LR": ("learning_rate", float),
    "LR_SCHEDULE": ("lr_scheduler_type", str),
    "STEPS": ("max_steps", int),
    "EVAL_STEPS": ("eval_steps", int),
    "ZO_EPS": ("zo_eps", float),
    "DERIVATIVE": ("zo_derivative", str),
    "NUM_TRAIN": ("num_train", int),
    "NUM_DEV": ("num_dev", int),
    "NUM_EVAL": ("num_eval", int),
    "SEED": ("train_set_seed", int),
    "RUN_SEED": ("seed", int),
}
DEFAULTS = {
    "smoke": False,
    "zo_inplace": False,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "train_on": "train",
    "max_length": 2048,
    "no_truncation": False,
    "sfc": False,
    "sampling": False,
    "num_beams": 1,
    "eos_token": "\n",
}
PAC_DEFAULTS = {
    "pac_adaptive_mi": True,
    "pac_disjoint_pairs": False,
    "pac_sampling_rate": None,
    "pac_zpl_abstain": False,
    "pac_continue_from": None,
}


def is_cell(cell: Cell, found: dict[str, Any]) -> bool:
    """Whether a run's settings are those that the cell's script shows, and the defaults for the rest."""
    shown = dict(variables(cell))
    wanted: dict[str, Any] = {name: read(shown[v]) for v, (name, read) in SETTINGS.items() if v in shown}
    wanted |= {"lora": cell["track"] == "lora", "prefix_tuning": False, "head_tuning": False, **DEFAULTS}
    if cell["method"] in DP_METHODS:
        wanted |= {"dp_clip": float(cell["clip"]), "dp_accountant": "rdp"}
    else:
        wanted |= {
            "pac_clip": float(cell["clip"]),
            "pac_zpl": cell["method"] == "pac-zpl",
            "no_privacy": cell["method"] == "non-private",
            **PAC_DEFAULTS,
        }
    return all(name in found and found[name] == value for name, value in wanted.items())
