"""Attacks on what was forgotten: `python -m src.tofu.attacks relearn|quantize|table MODEL ... [--options]`.

    relearn MODEL ... --retain_model R   fine-tune on a few forget rows, and on unrelated rows: what comes back
    quantize MODEL ... [--before M]      round the weights to 8 and 4 bits: what comes back
    table MODEL ...                      what was found, side by side

A MODEL is a model's folder. Results lie beside its evaluation, in `MODEL/evals/RELEARN.json` and `QUANTIZE.json`;
what is there and still true is not repeated. DATA_DIR chooses between a local folder and the hub.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from src.models import load_model
from src.tofu.attacked import BITS, FORMAT, METRICS, QUANTIZE, RELEARN, attack_rows, read_attack, verdict
from src.tofu.chat import DATE_STRING, ChatFormat, chat_format
from src.tofu.evaluation import EvalData, EvalSettings, Evaluation, load_eval_data
from src.tofu.logs import Log, json_digest, read_matching, read_retain_log, scores_of, weights_digest
from src.tofu.quantize import quantize_, undone_share
from src.tofu.relearn import Curve, RelearnSettings, area_between, known_and_others, lower_bound, relearn
from src.tofu.rows import Row, load_split
from src.utils import Parser, UserError, precision, run_cli, write_json


@dataclass
class AttackArguments:
    """The rows, and how strong the attacker is."""

    retain_model: str | None = field(default=None, metadata={"help": "Model that never saw the forget set."})
    retain_log: str | None = field(default=None, metadata={"help": "Its TOFU_EVAL.json, for forget_quality."})
    before: str | None = field(default=None, metadata={"help": "The model before unlearning."})
    forget_split: str = field(default="forget10", metadata={"help": "forget01, forget05 or forget10."})
    share: float = field(default=0.1, metadata={"help": "Of the forget rows that are fine-tuned on."})
    steps: int = field(default=40, metadata={"help": "Optimizer steps of relearning."})
    every: int = field(default=10, metadata={"help": "Steps between two looks at the other rows."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Of relearning."})
    batch: int = field(default=4, metadata={"help": "Rows a step."})
    seed: int = field(default=0, metadata={"help": "Of the rows' choice and order."})
    max_new_tokens: int = field(default=200, metadata={"help": "Of a generated answer."})
    eval_limit: int | None = field(default=None, metadata={"help": "Rows of each evaluation set at most."})
    holdout_rows: int = field(default=0, metadata={"help": "Retain rows kept for the attacks, as in training."})
    eval_gradnorm: bool = field(default=True, metadata={"help": "Compute the GradNorm attack, as in evaluation."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, float16, bfloat16, auto."})
    opt_bos: str = field(default="</s>", metadata={"help": "First token of OPT prompts."})
    system_prompt: str | None = field(
        default=None, metadata={"help": "For chat templates; default: that of the model's family."}
    )
    date_string: str = field(default=DATE_STRING, metadata={"help": "Today's date for templates that write one."})

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"share must lie strictly between 0 and 1, got {self.share}")
        for name in ("steps", "every", "batch", "max_new_tokens", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def relearning(self) -> RelearnSettings:
        names = RelearnSettings.__dataclass_fields__
        return RelearnSettings(**{name: getattr(self, name) for name in names})

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        return chat_format(tokenizer, self.system_prompt, self.date_string)

    @property
    def data_dir(self) -> str | None:
        return os.environ.get("DATA_DIR") or None

    def load(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return load_model(name, precision(self.dtype, device), device, opt_bos=self.opt_bos)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands on models; raises `UserError` for anything wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    command, *words = words
    start = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    models, options = words[:start], words[start:]
    commands = {"relearn": relearn_all, "quantize": quantize_all, "table": lambda models, _: print(table(models))}
    if command not in commands:
        raise UserError(f"unknown command '{command}'; known: {', '.join(commands)}")
    (args,) = Parser(AttackArguments).parse(options)
    if not models:
        raise UserError(f"{command} needs the folder of a model")
    if missing := [name for name in models if not Path(name).is_dir()]:
        raise UserError(f"{missing[0]} is no folder with a model")
    disable_progress_bar()
    commands[command](models, args)


def relearn_all(models: Sequence[str], args: AttackArguments) -> None:
    if args.retain_model is None:
        raise UserError("relearn compares with a model that never saw the forget set: give --retain_model")
    known, others = known_and_others(
        load_split(args.forget_split, args.data_dir, holdout_rows=args.holdout_rows).forget, args.share, args.seed
    )
    asked = others[: args.eval_limit]
    data = load_eval_data(args.forget_split, args.data_dir, holdout_rows=args.holdout_rows, limit=args.eval_limit)
    taught = {"forget": known, "unrelated": data.sets["ra"] + data.sets["wf"]}
    retain = _curves(args.retain_model, taught, asked, args)["curves"]
    for name in models:
        found = _curves(name, taught, asked, args)
        if Path(name).samefile(args.retain_model):
            print(table([name]))
            continue
        against = {
            rows: {metric: area_between(curve, retain[rows], metric) for metric in METRICS}
            for rows, curve in found["curves"].items()
        }
        _write(name, RELEARN, {**found, "against": against, "retain_model": args.retain_model})
        print(table([name]))


def _curves(name: str, taught: dict[str, list[Row]], asked: list[Row], args: AttackArguments) -> dict[str, Any]:
    """Both attacks on one model, unless its folder has them already, made with the same key."""
    model, tokenizer = args.load(name)
    chat = args.chat(tokenizer)
    what = [taught, asked, asdict(args.relearning), asdict(chat), args.opt_bos, args.dtype]
    key = {"weights": weights_digest(model), "attack": json_digest(what)}
    stored = read_attack(Path(name) / "evals", RELEARN)
    if stored is not None and stored.get("key") == key:
        return stored
    curves: dict[str, Curve] = {}
    for rows, items in taught.items():
        if curves:
            model, tokenizer = args.load(name)
        curves[rows] = relearn(model, tokenizer, items, asked, args.relearning, chat)
    found = {"format": FORMAT, "key": key, "settings": asdict(args.relearning), "curves": curves}
    _write(name, RELEARN, found)
    return found


def quantize_all(models: Sequence[str], args: AttackArguments) -> None:
    data = load_eval_data(args.forget_split, args.data_dir, holdout_rows=args.holdout_rows, limit=args.eval_limit)
    retain = None if args.retain_model is None else _rounded(args.retain_model, data, args)
    for name in models:
        found = _rounded(name, data, args)
        for kind in BITS:
            back = _change(found, kind)
            if retain is not None:
                back -= _change(retain, kind)
            found[kind] |= {"back": float(back.mean()), "back_low": lower_bound(back)}
        _write(name, QUANTIZE, found)
        print(table([name]))


def _change(found: dict[str, Any], kind: str) -> np.ndarray:
    """By how much rounding changes the probability of each forget row."""
    return np.array(found[kind]["forget_rows"]) - np.array(found["none"]["forget_rows"])


def _rounded(name: str, data: EvalData, args: AttackArguments) -> dict[str, Any]:
    """The scores of one model as it is and rounded, unless its folder has them already, made with the same key."""
    model, tokenizer = args.load(name)
    evaluation = _evaluation(model, tokenizer, data, args)
    key = {**evaluation.key(), "before": args.before}
    stored = read_attack(Path(name) / "evals", QUANTIZE)
    if stored is not None and stored.get("key") == key:
        return stored
    # The model's own evaluation may have been made with other settings: it is read, never replaced.
    plain = read_matching(Path(name) / "evals", evaluation.key()) or evaluation.run()
    found: dict[str, Any] = {"format": FORMAT, "key": key, "none": _scores(plain)}
    for kind, bits in BITS.items():
        rounded, _ = args.load(name)
        quantize_(rounded, bits)
        found[kind] = _scores(_evaluation(rounded, tokenizer, data, args).run())
        if args.before is not None:
            found[kind]["undone_share"] = undone_share(model, args.load(args.before)[0], bits)
    _write(name, QUANTIZE, found)
    return found


def _evaluation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: EvalData, args: AttackArguments
) -> Evaluation:
    settings = EvalSettings(args.max_new_tokens, args.eval_limit, args.eval_gradnorm)
    log = read_retain_log(Path(args.retain_log)) if args.retain_log else None
    return Evaluation(model, tokenizer, data, settings, chat=args.chat(tokenizer), retain_log=log)


def _scores(log: Log) -> dict[str, Any]:
    return {**scores_of(log), "forget_rows": forget_probabilities(log)}


def forget_probabilities(log: Log) -> list[float]:
    """Of each forget row, in the rows' order: a log that was read from its file has them sorted as words."""
    rows = log["forget_Q_A_Prob"]["value_by_index"]
    return [rows[index]["prob"] for index in sorted(rows, key=int)]


def _write(model: str, name: str, found: dict[str, Any]) -> None:
    evals = Path(model) / "evals"
    try:
        evals.mkdir(exist_ok=True)
        write_json(evals / name, found)
    except OSError as error:
        raise UserError(f"cannot write {evals / name}: {error.strerror}") from error


def table(models: Sequence[str]) -> str:
    """The attacks on some models side by side, and what they say of each."""
    columns = {Path(name).name: attack_rows(Path(name) / "evals") for name in models}
    titles = list(dict.fromkeys(title for column in columns.values() for title in column))
    wide = max(14, *(len(name) + 2 for name in columns))
    lines = [" " * 30 + "".join(f"{name:>{wide}}" for name in columns)]
    for title in titles:
        values = [column.get(title) for column in columns.values()]
        lines.append(f"{title:<30}" + "".join(f"{'-' if v is None else format(v, '.4g'):>{wide}}" for v in values))
    for name in models:
        if (found := verdict(Path(name) / "evals")) is not None:
            lines.append(f"{Path(name).name}: {found}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
