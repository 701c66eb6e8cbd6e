"""Fixtures: a tiny tokenizer, a tiny model, and where data lies."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from builders import make_tokenizer, save_text_model
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder with a tiny model that reads any text."""
    return save_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def sample_data_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tasks read the project's sample data, and relative paths lie in a folder of the test."""
    monkeypatch.setenv("DATA_DIR", str(Path(__file__).resolve().parents[1] / "src" / "sample_data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real SST-2, SQuAD and TOFU; tests that need them are skipped where DATA_DIR is not set."""
    value = os.environ.get("DATA_DIR")
    if not value:
        pytest.skip("DATA_DIR is not set")
    return Path(value)


@pytest.fixture
def run_here() -> Iterator[Callable[[Sequence[str]], None]]:
    """Runs a command, its module and its arguments, in this process and on one thread, as `environment` would."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda words: importlib.import_module(words[0]).main(words[1:])
    torch.set_num_threads(threads)


@pytest.fixture
def environment() -> dict[str, str]:
    """Variables of a process that is started by a test, outside of any launcher."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
