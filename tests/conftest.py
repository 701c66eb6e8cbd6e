"""Fixtures: a tiny tokenizer, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from builders import make_tokenizer
from transformers import PreTrainedTokenizerFast

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real SST-2, SQuAD and TOFU; tests that need them are skipped where DATA_DIR is not set."""
    value = os.environ.get("DATA_DIR")
    if not value:
        pytest.skip("DATA_DIR is not set")
    return Path(value)
