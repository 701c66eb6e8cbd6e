"""The client unlearns on published copies and returns what changed: `python -m pum.client --help`.

    python -m pum.client --offer offer/round1 --reply reply/round1 --forget_path F --retain_path R

Everything that any other code would do as well: it reads a model folder, trains, and writes the difference. Of the
rows nothing is written but the difference itself. A command that was killed goes on at its copy when given again.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from pum.aggregate import check_update
from pum.folders import DIFFERENCE, LORA, MANIFEST, Manifest, Offer, add_reply, copy_name, read_offer, read_replies
from pum.tensors import Kind, Layout, layout_of, write_tensors
from pum.unlearn import METHODS
from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.data import UnlearnData
from pum.unlearn.running import RunArguments, load, unlearn_data
from pum.unlearn.trainer import UnlearnTrainer, steps_an_epoch
from src.lora import LoraSettings, add_lora
from src.utils import Parser, UserError, run_cli

# Of `RunArguments`: which rows, and how they are put to the model.
ROWS = (
    "forget_split",
    "forget_path",
    "retain_path",
    "refusals_path",
    "holdout_rows",
    "max_retain",
    "opt_bos",
    "system_prompt",
    "date_string",
)


@dataclass
class ClientArguments(UnlearnArguments):
    """The inner run's arguments. Method and data seed are the offer's where none is given."""

    offer: str = field(default="", metadata={"help": "Folder of a round's offer, offer/round1."})
    reply: str = field(default="", metadata={"help": "Folder of the reply, reply/round1."})
    copy: int | None = field(default=None, metadata={"help": "Only this copy, counted from 1; null: all of them."})
    method: str = field(default="", metadata={"help": "Another name of inner_handler."})
    inner_handler: str | None = field(default=None, metadata={"help": "Unlearning method; null: the offer's."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Where the trainer works; null: a folder that is removed."}
    )
    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all parameters."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters, alpha."})
    send_adapters: bool = field(default=False, metadata={"help": "Return the adapters, not the difference."})

    def __post_init__(self) -> None:
        if not self.offer or not self.reply:
            raise UserError("--offer and --reply are needed")
        if self.send_adapters and not self.lora:
            raise UserError("--send_adapters belongs to --lora")
        self.work = read_offer(Path(self.offer))
        if self.copy is not None and not 1 <= self.copy <= self.work.copies:
            raise UserError(f"--copy must be from 1 to {self.work.copies}, got {self.copy}")
        task = self.work.manifest["task"]
        self.method = self.inner_handler or self.method or task["method"]
        if self.method not in METHODS:
            raise UserError(f"unknown inner method '{self.method}'; known: {', '.join(METHODS)}")
        if self.data_seed is None:
            self.data_seed = task["data_seed"]
        given = self.output_dir
        super().__post_init__()
        self.output_dir = given  # not the library's own in the current folder

    @property
    def adapters(self) -> LoraSettings | None:
        return LoraSettings(self.lora_r, self.lora_alpha, seed=self.seed) if self.lora else None


def _row_arguments() -> type:
    hints = get_type_hints(RunArguments)
    chosen = {item.name: item for item in fields(RunArguments)}
    return make_dataclass(
        "RowArguments",
        [
            (name, hints[name], field(default=chosen[name].default, metadata=chosen[name].metadata))
            for name in ROWS
        ],
    )


RowArguments: Any = _row_arguments()


def main(argv: Sequence[str] | None = None) -> None:
    """Unlearn on the offer's copies; raises `UserError` where the offer or the rows are not as they should be."""
    rows, args = Parser((RowArguments, ClientArguments)).parse(sys.argv[1:] if argv is None else argv)
    offer, folder = args.work, Path(args.reply)
    name, index = offer.manifest["offer"], offer.manifest["round"] - 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use {folder}: {error.strerror}") from error
    finished = read_replies(folder, name, index) if (folder / MANIFEST).exists() else {}
    chosen = range(offer.copies) if args.copy is None else [args.copy - 1]
    left = [k for k in chosen if k not in finished]
    for k in left:
        offer.check_copy(k)  # of all, before the first one costs hours
    for k in left:
        entry = unlearn_copy(offer, k, rows, args)
        add_reply(folder, name, index, entry)
        print(f"wrote {folder}: {copy_name(k)}, {entry['steps']} steps of {entry['method']}")
    if not left:
        print(f"{folder} has all of it already")


def unlearn_copy(offer: Offer, k: int, rows: Any, args: ClientArguments) -> Manifest:
    """Unlearn on copy k and write its file into the reply's folder; its entry in the reply's manifest."""
    published = offer.check_copy(k)
    run = RunArguments(model_name=str(offer.copy(k)), dtype=offer.manifest["dtype"], **asdict(rows))
    loaded = load(run, args.device)
    data = unlearn_data(loaded, run, args)
    task = {key: offer.manifest["task"][key] for key in ("local_epochs", "local_max_steps", "auto_balance")}
    steps = local_steps(args, len(data.forget), rounds=offer.manifest["rounds"], **task)
    with tempfile.TemporaryDirectory() as temporary:
        trained = unlearn(
            loaded.model,
            data,
            args,
            args.output_dir or temporary,
            max_steps=steps,
            adapters=args.adapters,
            tokenizer=loaded.tokenizer,
            merges=not args.send_adapters,
        )
    entry = {"copy": k + 1, "method": args.method, "steps": steps, "kind": DIFFERENCE}
    if args.send_adapters:
        state = {name: tensor.float() for name, tensor in get_peft_model_state_dict(trained).items()}
        entry |= {"kind": LORA, "lora_alpha": args.lora_alpha}
        layout, tensors = layout_of(state.items()), iter(state.items())
    else:
        layout = difference_layout(published.layout)
        tensors = difference(trained, published, published.layout)
    path = Path(args.reply) / f"{copy_name(k)}.safetensors"
    return {**entry, "sha256": write_tensors(path, layout, tensors)}


def unlearn(
    model: nn.Module,
    data: UnlearnData,
    args: UnlearnArguments,
    run_dir: str,
    *,
    max_steps: int,
    adapters: LoraSettings | None = None,
    data_seed: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    merges: bool = True,
    reference: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Train `model` in place with an `UnlearnTrainer` without checkpoints, and return it.

    Args:
        args: the inner run's; what else their class may hold does not count.
        adapters: train LoRA adapters instead, which are merged into `model` at the end, unless `merges` is false:
            then the model with adapters is returned.
        data_seed: in the place of that of `args`.
        reference: what the method compares with, as `UnlearnTrainer` takes it; adapters compare with `model`.
    """
    settings = {item.name: getattr(args, item.name) for item in fields(UnlearnArguments) if item.init}
    settings |= {
        "output_dir": run_dir,
        "max_steps": max_steps,
        "save_strategy": "no",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "fingerprint": False,
    }
    if data_seed is not None:
        settings["data_seed"] = data_seed
    trained: Any = model
    if adapters is not None:
        assert isinstance(model, PreTrainedModel)
        trained = add_lora(model, adapters)
    trainer = UnlearnTrainer(
        trained,
        UnlearnArguments(**settings),
        data,
        processing_class=tokenizer,
        reference=reference if adapters is None else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trained.merge_and_unload() if adapters is not None and merges else trained


def local_steps(
    args: UnlearnArguments,
    forget_rows: int | None,
    *,
    rounds: int,
    local_epochs: float | None,
    local_max_steps: int | None,
    auto_balance: bool,
) -> int:
    """Steps on each copy: of `local_epochs`; else balanced, times the rounds they are the plain run's, rounded up.

    Args:
        args: the plain run's epochs, batch and, where they are given, steps.
        forget_rows: None where they are not known.
    """
    steps = args.max_steps
    if forget_rows is not None and (steps < 1 or local_epochs is not None):
        epochs = local_epochs if local_epochs is not None else args.num_train_epochs
        assert epochs is not None
        steps = math.ceil(epochs * steps_an_epoch(forget_rows, *args.whole_step))
    if steps < 1:
        steps = local_max_steps or 0
    if steps < 1:
        raise UserError("the local steps are not known: give local_max_steps or max_steps")
    if local_max_steps is not None:
        return min(steps, local_max_steps)
    return math.ceil(steps / rounds) if auto_balance and local_epochs is None else steps


@torch.no_grad()
def difference(model: nn.Module, published: Mapping[str, Tensor], layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """What the client changed, D'_k: name and float32 tensor, one at a time, in the order of `layout`.

    Args:
        published: the copy as it was, on the device where differences are wanted.
        layout: of `published`.

    Raises:
        UserError: the model has other names or shapes than what was published, or something is not finite.
    """
    trained = dict(model.named_parameters())
    for name in [*layout, *trained]:
        if name not in trained or name not in layout or trained[name].shape != layout[name].shape:
            raise UserError(f"the client returned a copy whose {name} has another name or shape")
    for name in layout:
        before = published[name]
        update = trained[name].detach().to(before.device).float() - before.float()
        check_update({name: update}, None)
        yield name, update


def difference_layout(published: Layout) -> dict[str, Kind]:
    """Of the file that holds a difference."""
    return {name: Kind(kind.shape, torch.float32) for name, kind in published.items()}


if __name__ == "__main__":
    run_cli(main)
