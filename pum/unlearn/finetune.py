"""Fine-tuning on question and answer, TOFU's recipe: it makes the models that unlearning starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from pum.unlearn.data import Item
from pum.unlearn.trainer import leave_autocast, set_warmup
from src.tofu.prompts import collate
from src.utils import UserError


@dataclass
class FinetuneArguments(TrainingArguments):
    """`TrainingArguments` with the recipe of arXiv 2401.06121, appendix A: AdamW, batch 32, 5 epochs."""

    output_dir: str | None = field(default=None, metadata={"help": "Default: saves/finetune/<model>_<split>."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows in one micro-batch."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Micro-batches a step."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the rows."})
    warmup_epochs: float = field(default=1.0, metadata={"help": "Epochs of warm-up where warmup_steps is 0."})
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer, as in transformers."})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints on the way, as in transformers."})
    report_to: str | None = field(default="none", metadata={"help": "Where losses go, as in transformers."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False
        if self.data_seed is None:
            self.data_seed = self.seed
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type == "cuda"
        self._n_gpu = min(self.n_gpu, 1)


class Rows(Dataset[Item]):
    def __init__(self, rows: Sequence[Item]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.rows[index]


class FinetuneTrainer(Trainer):
    """A `Trainer` whose warm-up is counted in epochs and that leaves the model in its own precision.

    Its loss is the model's own, on answer tokens.
    """

    args: FinetuneArguments

    def __init__(self, model: nn.Module, args: FinetuneArguments, rows: Sequence[Item], **kwargs: Any) -> None:
        if not rows:
            raise UserError("there is nothing to fine-tune on")
        super().__init__(model, args, train_dataset=Rows(rows), data_collator=collate, **kwargs)
        self.num_rows = len(rows)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        set_warmup(self.args, self.args.warmup_epochs, self.num_rows, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        leave_autocast(self)
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0
