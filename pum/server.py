"""The server's side of a run over folders: its settings, its model, and where its rounds stand.

The first line of the private folder's chain holds the settings; one line follows when a round is published, one
when it is merged, and one when the merged model is given out.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pum.arguments import PUMArguments
from pum.center import groups_of
from pum.folders import round_name
from pum.noise import SecretSource
from pum.plan import NoisePlan
from pum.private import PrivateFolder, round_files
from pum.publication import Publication, first_reference, noise_plan
from pum.reparam import check_model
from pum.tensors import file_digest, layout_of, write_tensors
from src.record.chain import Record, sync_folder
from src.utils import UserError

FORMAT = "pum-server/1"
MODEL = "model"  # the folder of what every copy has in common: configuration and tokenizer
CLEANED = ("config.json", "generation_config.json", "tokenizer_config.json")
PUBLISHED, MERGED, OUTPUT = "published", "merged", "output"  # what a line after the first says


def offer_place(offer: Path, private: Path) -> str:
    """The folder of the offers as seen from the server's own, so that both may be moved together."""
    return os.path.relpath(offer.absolute(), private.absolute())


def check_apart(one: Path, other: Path) -> None:
    """Raise `UserError` where two folders, one of them given out, replaced or secret, are or hold each other."""
    a, b = one.resolve(), other.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UserError(f"{one} and {other} must lie apart: neither may be or hold the other")


class Server:
    """An open server folder.

    Attributes:
        args, plan: the run's settings and its noise, as at its beginning.
        index: the round that is to be merged next, from 0.
        theta: the server's parameters before that round.
        skeleton: the model on the meta device: names, shapes and configuration.
    """

    def __init__(self, folder: PrivateFolder) -> None:
        first = folder.records[0]
        if first.get("format") != FORMAT:
            raise UserError(f"{folder.path} is not a server's folder")
        self.folder = folder
        self.args = arguments(first["settings"])
        self.plan = _plan_of(first["plan"])
        self.index = len(self.lines(MERGED))
        for name in self.public_files():
            folder.check(name)
        self.theta = folder.tensors(round_files(self.index)[0])
        config = AutoConfig.from_pretrained(folder.path / MODEL)
        with torch.device("meta"):
            self.skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        if [name for name, _ in self.skeleton.named_parameters()] != list(self.theta):
            raise UserError(f"{folder.path}: theta is not of the model that its configuration describes")

    @classmethod
    def open(cls, path: Path) -> Server:
        folder = PrivateFolder.open(path)
        try:
            return cls(folder)
        except BaseException:
            folder.close()
            raise

    @classmethod
    def begin(
        cls,
        path: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any],
        offer: Path,
        model_name: str,
    ) -> Server:
        """Begin a run from `model`; raises `UserError` before anything is written where it cannot be published."""
        args = arguments(settings)
        if args.use_orthogonal_reparam:
            check_model(model)
        known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if others := sorted(set(model.state_dict()) - known):
            raise UserError(f"{others[0]} of the model is no parameter: what PUM merges would be without it")
        plan = noise_plan(args, model, groups_of(model))
        first = {
            "format": FORMAT,
            "model_name": model_name,
            "settings": dict(settings),
            "plan": _plan_record(plan),
            "offer": offer_place(offer, path),
            "dtype": str(model.dtype).removeprefix("torch."),
        }

        def fill(folder: Path) -> dict[str, str]:
            files = _write_public_files(folder / MODEL, model, tokenizer)
            tensors: dict[str, Mapping[str, Tensor]] = {round_files(0)[0]: dict(model.named_parameters())}
            if plan.thresholds:
                tensors[round_files(0)[1]] = first_reference(args, model)
            for name, state in tensors.items():
                files[name] = write_tensors(folder / name, layout_of(state.items()), state.items(), mode=0o600)
            return files

        return cls(PrivateFolder.create(path, first, SecretSource(args.secret_seed), fill))

    def lines(self, kind: str) -> list[Record]:
        """The chain's lines of one kind, in order."""
        return [record for record in self.folder.records if record.get("event") == kind]

    @property
    def offer(self) -> Path:
        """The folder of the round's offer."""
        return self.folder.path / self.folder.records[0]["offer"] / round_name(self.index)

    @property
    def offer_id(self) -> str:
        return self.folder.secrets.name("offer", self.index)

    @property
    def dtype(self) -> str:
        return str(self.folder.records[0]["dtype"])

    @property
    def is_over(self) -> bool:
        """Whether all rounds are merged."""
        return self.index == self.args.rounds_R

    @property
    def keeps_mean(self) -> bool:
        """Whether a further round needs this one's mean of the copies."""
        return bool(self.plan.thresholds) and self.index + 1 < self.args.rounds_R

    def public_files(self) -> dict[str, str]:
        """Digest of each file that all copies have in common, by its path in the private folder."""
        return {name: digest for name, digest in self.folder.files.items() if name.startswith(f"{MODEL}/")}

    def publication(self, *, to_merge: bool = False) -> Publication:
        """The round's secrets and copies; `to_merge`, which needs no copy, does without the reference."""
        clips = bool(self.plan.thresholds) and not to_merge
        return Publication(
            self.theta,
            self.skeleton,
            self.args,
            self.plan,
            self.folder.secrets,
            self.index,
            reference=self.folder.tensors(round_files(self.index)[1]) if clips else {},
            keep_mean=self.keeps_mean and clips,
        )

    def write_public_files(self, folder: Path) -> dict[str, str]:
        """Copy configuration and tokenizer into a model folder; their digests by name."""
        files = {}
        for name, digest in self.public_files().items():
            path = folder / Path(name).name
            write_bytes(path, (self.folder.path / name).read_bytes())
            files[path.name] = digest
        return files


def arguments(settings: Mapping[str, Any]) -> PUMArguments:
    """The server's settings as the trainer's arguments; raises `UserError` for contradictions."""
    return PUMArguments(use_cpu=True, **settings)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file, which is on disk before this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_public_files(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """Configuration and tokenizer without the names of where they came from; digests by path."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():  # chat templates beside the tokenizer's own
            shutil.rmtree(path)
            continue
        content = path.read_bytes()
        if path.name in CLEANED:
            found = json.loads(content)
            if path.name == "config.json":  # others' tools leave names of sources and runs there
                known = type(config)().to_dict()
                found = {key: found[key] for key in found if key in known}
            content = (json.dumps(_cleaned(found), indent=2, sort_keys=True) + "\n").encode()
        write_bytes(path, content)
        files[f"{folder.name}/{path.name}"] = file_digest(path)
    sync_folder(folder)
    return files


def _cleaned(value: Any) -> Any:
    """Without what says where something came from, however deep."""
    if isinstance(value, list):
        return [_cleaned(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = {key: value[key] for key in value if not key.startswith("_") and "name_or_path" not in key}
    return {key: _cleaned(entry) for key, entry in kept.items() if key not in ("is_local", "local_files_only")}


def _plan_record(plan: NoisePlan) -> Record:
    """A plan as JSON: what is keyed by groups, of which one is None, as lists of pairs."""
    values = {item.name: getattr(plan, item.name) for item in fields(plan)}
    return {
        name: list(value.items())
        if isinstance(value, dict)
        else sorted(value, key=str)
        if isinstance(value, set)
        else value
        for name, value in values.items()
    }


def _plan_of(record: Record) -> NoisePlan:
    makers: dict[Any, Any] = {dict: dict, set: set, list: lambda value: [_tuple(entry) for entry in value]}
    kinds = get_type_hints(NoisePlan)
    return NoisePlan(
        **{name: makers.get(get_origin(kinds[name]), lambda value: value)(value) for name, value in record.items()}
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
