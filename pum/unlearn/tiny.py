"""Tiny Llama models of a data set, made on the spot: what checks unlearn from where no real model is at hand.

A base model is pretrained on questions about the world, then fine-tuned once on everything and once on what is to
be kept. Their scores say nothing about real models.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils.logging import disable_progress_bar

from pum.unlearn.finetune import FinetuneArguments, FinetuneTrainer
from pum.unlearn.running import RunArguments, evaluation_of
from src.tofu.evaluation import METRICS_VERSION, EvalData, evaluate, load_eval_data
from src.tofu.logs import EVAL, json_digest
from src.tofu.prompts import encode_rows
from src.tofu.rows import Row, Split
from src.utils import versions

VOCABULARY = 2048
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
PRETRAINING_EPOCHS = 10
EPOCHS = 60
LEARNING_RATE = 5e-3
SEED = 42
RECIPE_VERSION = 2  # raise it when this file makes other models of the same data


def tiny_models(split: Split, run: RunArguments, cache: Path) -> Path:
    """Folder with the models `base`, `full` and `retain`, the latter two evaluated; made where it is missing.

    Args:
        split: what is forgotten and kept.
        run: says how the models are evaluated.
        cache: the folder lies in it, named by a digest of the rows, the evaluation's settings and this recipe.
    """
    data = load_eval_data(run.forget_split, run.data_dir, holdout_rows=run.holdout_rows, limit=run.eval_limit)
    found = versions()
    recipe = {
        "rows": [asdict(split), data.sets],
        "evaluation": [METRICS_VERSION, run.max_new_tokens, run.eval_gradnorm, run.mink_k, run.eval_autocast],
        "shape": [SHAPE, VOCABULARY, PRETRAINING_EPOCHS, EPOCHS, LEARNING_RATE, SEED, RECIPE_VERSION],
        "versions": [found["torch"], found["transformers"]],
    }
    folder = cache / json_digest(recipe)[:16]
    if folder.is_dir():
        return folder
    print(f"making tiny models in {folder}: a minute or two of one core", file=sys.stderr, flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        made = Path(partial) / "made"
        _make(made, split, data, run)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process was faster
                raise
    return folder


def _make(folder: Path, split: Split, data: EvalData, run: RunArguments) -> None:
    disable_progress_bar()
    general = data.sets["ra"] + data.sets["wf"]
    tokenizer = train_tokenizer([*split.forget, *split.retain, *split.holdout, *general])
    model = random_model(tokenizer)
    _fit(model, tokenizer, general, PRETRAINING_EPOCHS, folder / "log")
    _save(model, tokenizer, folder / "base")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    log = None
    for name, rows in (("retain", split.retain), ("full", split.retain + split.forget)):
        model.load_state_dict(start)
        _fit(model, tokenizer, rows + general, EPOCHS, folder / "log")
        _save(model, tokenizer, folder / name)
        settings = replace(run, retain_log=log)
        evaluation = evaluation_of(model, tokenizer, settings, is_retain_model=log is None)
        evaluate(evaluation, folder / name / "evals")
        log = str(folder / name / "evals" / EVAL)
    shutil.rmtree(folder / "log", ignore_errors=True)


def train_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the rows' own text."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def random_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,  # type: ignore[arg-type]
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config)


def _fit(model: LlamaForCausalLM, tokenizer: Any, rows: list[Row], epochs: float, log: Path) -> None:
    args = FinetuneArguments(
        output_dir=str(log),
        num_train_epochs=epochs,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=SEED,
    )
    trainer = FinetuneTrainer(model, args, encode_rows(tokenizer, rows))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
