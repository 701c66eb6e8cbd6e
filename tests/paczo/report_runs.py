"""Runs of cells as they lie on disk, and the report on them, for its tests."""

from __future__ import annotations

import json

from paczo.cells import cells
from paczo.report import __main__ as report

ROWS = {cell["run_id"]: cell for cell in cells()}


def configuration(cell):
    """What a run of the cell at the paper's settings writes, spelled out here on its own."""
    number = {name: float(cell[name]) if cell[name] else None for name in ("lr", "clip", "mi", "epsilon")}
    is_dp = cell["folder"] == "baselines"
    found = {
        "task_name": cell["task"],
        "model_name": cell["model"],
        "lora": cell["track"] == "lora",
        "lora_r": int(cell["lora_r"] or 8),
        "lora_alpha": 16.0,
        "lora_layers": "all",
        "learning_rate": number["lr"],
        "max_steps": int(cell["steps"]),
        "seed": 42,
        "train_set_seed": int(cell["seed"]),
        "num_train": 1000,
        "num_dev": 500,
        "num_eval": 1000,
        "opt_bos": "<s>",
        "zo_eps": 0.001,
        "zo_derivative": "central",
        "lr_scheduler_type": "constant" if is_dp else "polynomial",
        "smoke": False,
        "eval_steps": 200 if is_dp or cell["K"] != "1" else 100,
        "max_new_tokens": 50,
        "zo_inplace": False,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "prefix_tuning": False,
        "head_tuning": False,
        "train_on": "train",
        "max_length": 2048,
        "no_truncation": False,
        "sfc": False,
        "sampling": False,
        "num_beams": 1,
        "eos_token": "\n",
        "loss": "non_diff" if cell["task"] == "SQuAD" else "train_as_classification",
    }
    if is_dp:
        dp = {"dp_k": int(cell["K"]), "dp_clip": 25.0, "dp_epsilon": number["epsilon"], "dp_delta": 1e-5}
        return {**found, **dp, "dp_sample_rate": 0.064, "dp_accountant": "rdp"}
    mechanism = {
        "pac_m": int(cell["M"]),
        "pac_k": int(cell["K"]),
        "pac_clip": number["clip"],
        "pac_mi": number["mi"],
        "pac_charge": "real",
        "pac_zpl": cell["method"] == "pac-zpl",
        "no_privacy": cell["method"] == "non-private",
        "ablation": cell["ablation"] or None,
        "pac_adaptive_mi": True,
        "pac_disjoint_pairs": False,
        "pac_sampling_rate": None,
        "pac_zpl_abstain": False,
        "pac_continue_from": None,
    }
    return {**found, **mechanism}


def write_run(folder, name, score, secrets="operating-system entropy", **changes):
    """A finished run; `changes` overwrite its configuration."""
    cell = ROWS[name]
    metric = "f1" if cell["task"] == "SQuAD" else "accuracy"
    privacy = {
        "mechanism": cell["method"],
        "private": True,
        "secrets": secrets,
        "releases": {"unanimous": 3, "coin": 1},
        "posterior_success_bound": 0.5,
    }
    metrics = {
        "after": {"test": {"loss": 0.1, metric: score}, "dev": {}},
        "privacy": privacy,
        "steps": 4,
        "configuration": {**configuration(cell), **changes},
    }
    path = folder / name
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps(metrics))
    return path


def page(tmp_path, *more):
    output = tmp_path / "report"
    folders = ["--runs", str(tmp_path / "runs"), "--published", str(tmp_path / "published")]
    report.main([*folders, "--output", str(output), *more])
    return (output / "report.md").read_text(), (output / "report.html").read_text()
