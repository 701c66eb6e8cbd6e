"""`PUMTrainer`: perturb, unlearn, merge (arXiv 2602.23798) around any inner unlearning routine."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import TrainOutput

from pum.aggregate import check_update, l2_norm
from pum.arguments import PUMArguments
from pum.center import groups_of
from pum.client import difference, difference_layout, local_steps, unlearn
from pum.folders import DIFFERENCE, MANIFEST, Reply, add_reply, copy_name, read_replies, round_name
from pum.merge import applied, merge_differences
from pum.noise import SecretSource
from pum.on_disk import parameters_on_disk
from pum.private import CHAIN, PrivateFolder, begun, round_files
from pum.publication import Publication, first_reference, noise_plan, privacy_report
from pum.reparam import check_model
from pum.tensors import TensorFile, layout_of, write_tensors
from pum.unlearn import get_method
from pum.unlearn.data import UnlearnData
from pum.unlearn.trainer import record_fingerprint
from pum.workers import Workers
from src.lora import LoraSettings
from src.record.chain import load_records
from src.tofu.logs import json_digest, weights_digest
from src.utils import UserError, write_json

Inner = Callable[[nn.Module, Path, int], None]
PRIVATE = "private"  # folder of an unfinished run's state in its output folder

logger = logging.getLogger(__name__)

__all__ = ["Inner", "PUMArguments", "PUMTrainer"]


class PUMTrainer(Trainer):
    """A `Trainer` whose `train` runs R rounds of: publish m disguised noisy copies, unlearn on each, merge.

    It differs from the base in `train` alone, which does not call the base's loop: the gradient steps are the
    inner routine's. `model` is the server's theta; it changes only at the end of a round, so an error in a copy
    leaves it as it was. Server and client share this process: publishing, unlearning and merging are those of
    `pum.publish`, `pum.client` and `pum.merge`, with the offer left out.

    An unfinished run lies in `output_dir/private` (mode 0700): the key, what each finished copy returned, theta
    before the round. `train` with the same settings goes on there, after the last finished copy, and ends with
    the same bits; at its end it removes the folder.

    In memory, whatever m is: one copy, the copy as published; theta and S1 while merging; with centre clipping
    also the reference, and its mean where rounds follow; theta_0, too, where the client is given it.
    On disk, until a round is merged: theta, and what its copies returned, m models in float32.

    Args:
        model: the server's model, without adapters.
        args: PUM's settings and the inner run's.
        data: forget and retain rows of the client, for the default inner routine.
        inner: what the client does: `inner(model, run_dir, max_steps)` trains `model` in place. Default: an
            `UnlearnTrainer`, with LoRA adapters that are merged at its end where `args.lora` is set.
        workers: the processes that share the copies, process j those with k = j mod n; the first one merges.

    Raises:
        UserError: contradictory settings, an architecture without disguise, a client's update that is not
            finite or has other shapes.
    """

    args: PUMArguments
    model: nn.Module

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: PUMArguments,
        data: UnlearnData | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        inner: Inner | None = None,
        workers: Workers | None = None,
        **kwargs: Any,
    ) -> None:
        if hasattr(model, "peft_config"):
            raise UserError("PUM publishes a plain model: merge the adapters first; the client may use --lora")
        if inner is None:
            if data is None:
                raise UserError("PUM needs forget and retain rows, or an inner routine of its own")
            get_method(args.method).check(args, model, data)
        # The base makes the output folder: what can be refused is refused before.
        self.args, self.model, self.data, self.tokenizer = args, model, data, processing_class
        self.inner = inner or self._unlearn
        self.workers = workers or Workers()
        self.secrets = SecretSource(args.secret_seed)
        self.accumulate_device = torch.device(args.accumulate_device or args.device)
        self.groups = groups_of(model)
        self.layout = layout_of(model.named_parameters())
        if args.use_orthogonal_reparam:
            check_model(model)
        self.plan = noise_plan(args, model, self.groups)
        self.local_steps = local_steps(
            args,
            None if data is None else len(data.forget),
            rounds=args.rounds_R,
            local_epochs=args.local_epochs,
            local_max_steps=args.local_max_steps,
            auto_balance=args.auto_balance,
        )
        self.round_index = 0
        self.client_reference: Mapping[str, Tensor] | None = None
        self.reference: dict[str, Tensor] = {}
        if self.plan.thresholds:
            self.reference = first_reference(args, model, self.accumulate_device)
        self._run = self._configuration()
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        for warning in self.plan.warnings:
            logger.warning(warning)

    @property
    def run_dir(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def is_interrupted(self) -> bool:
        """Whether the output folder holds an unfinished run with these settings, model and rows."""
        path = self.run_dir / PRIVATE
        return begun(path) and load_records(path / CHAIN).records[0].get("run") == self._run

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        *args: Any,
        keeps_private: bool = False,
        **kwargs: Any,
    ) -> TrainOutput:
        """All rounds, or those that are left of an interrupted run.

        Then the merged model, the tokenizer and `privacy.json` in the output folder, in the first of several
        processes; in all of them `model` is the merged one.

        Args:
            resume_from_checkpoint: True demands that there is a run to go on with.
            keeps_private: leave the private folder for `discard_private`.
        """
        if resume_from_checkpoint not in (None, False, True) or any(args) or any(kwargs.values()):
            raise UserError("a PUM run takes no checkpoint: it goes on with what lies in its output folder")
        if resume_from_checkpoint and not self.is_interrupted:
            raise UserError(f"{self.run_dir} holds no interrupted run of these settings that could be resumed")
        begin = time.perf_counter()
        self.private = self._open_private()
        self._start = self._start_for_client()
        self._go_on()
        working_copy = copy.deepcopy(self.model)
        for index in range(self.round_index, self.args.rounds_R):
            norm = self._round(index, working_copy)
            self.state.global_step += self.local_steps
            self.log({"round": index + 1, "merged_update_norm": norm, "local_steps": self.local_steps})
        del working_copy
        self.workers.tell(f"ended {self.workers.rank}", lambda: None)
        if self.workers.is_first:
            self.workers.wait_for("ended")
            self._write_result()
            if not keeps_private:
                self.discard_private()
        seconds = time.perf_counter() - begin
        return TrainOutput(self.state.global_step, math.nan, {"train_runtime": seconds})

    def discard_private(self) -> None:
        """Remove the key and all that an interrupted run would go on with."""
        self.private.remove()

    def privacy(self) -> dict[str, Any]:
        """Both bounds, what they cover and what is published bare: the content of `privacy.json`."""
        return privacy_report(self.args, self.plan, self.model, self.secrets)

    def _configuration(self) -> str:
        """A digest of what the run's result hangs on, but for an inner routine of one's own."""
        settings = {name: value for name, value in self.args.to_dict().items() if name != "output_dir"}
        rows = [] if self.data is None else [list(self.data.forget), list(self.data.retain)]
        content = [settings, weights_digest(self.model), rows]
        return json_digest(json.dumps(content, default=str, sort_keys=True))

    def _open_private(self) -> PrivateFolder:
        """The state of the run that goes on, or that begins; the first process alone writes it."""
        path = self.run_dir / PRIVATE

        def open_or_create() -> PrivateFolder:
            if not begun(path):
                first = {"format": "pum-run/2", "run": self._run}
                return PrivateFolder.create(path, first, self.secrets, fill=self._write_theta)
            private = PrivateFolder.open(path)
            if private.records[0].get("run") != self._run:
                private.close()
                raise UserError(
                    f"{self.run_dir} holds an interrupted run with other settings, model or rows; choose another"
                    f" output folder or remove {path}"
                )
            return private

        if not self.workers.is_first:
            self.workers.wait("private")
            return PrivateFolder.open(path, to_read=True)
        opened: list[PrivateFolder] = []
        self.workers.tell("private", lambda: opened.append(open_or_create()))
        return opened[0]

    def _write_theta(self, folder: Path) -> dict[str, str]:
        """Write theta_0 where the first round reads it; the file's digest by its name."""
        name = round_files(0)[0]
        digest = write_tensors(folder / name, self.layout, self.model.named_parameters(), mode=0o600)
        return {name: digest}

    def _go_on(self) -> None:
        """Take secrets, theta and reference from the private folder, where a round was merged before."""
        self.secrets = self.private.secrets
        self.round_index = len(self.private.records) - 1
        self.state.global_step = self.round_index * self.local_steps
        theta, reference = round_files(self.round_index)
        if self.round_index:
            self._set(self.private.tensors(theta).items())
        if reference in self.private.files:
            for name, tensor in self.private.tensors(reference).items():
                self.reference[name] = tensor.to(self.accumulate_device)

    def _round(self, index: int, working_copy: nn.Module) -> float:
        """Publish, unlearn and merge once; the norm of the merged update."""
        args, m, workers, self.round_index = self.args, self.args.copies_m, self.workers, index
        with parameters_on_disk(self.model, self.private.path / round_files(index)[0]) as theta:
            publication = Publication(
                theta,
                self.model,
                args,
                self.plan,
                self.secrets,
                index,
                reference=self.reference,
                keep_mean=bool(self.reference) and index + 1 < args.rounds_R,
                device=self.accumulate_device,
            )
            own = range(workers.rank, m, workers.size)
            workers.tell(f"copies {index} {workers.rank}", lambda: self._copies(publication, own, working_copy))
        for name, tensor in publication.next_reference():
            self.reference[name] = tensor
        if workers.is_first:
            workers.wait_for(f"copies {index}")
        norm = workers.on_first(f"merged {index}", lambda: self._merge(publication))
        if not workers.is_first:
            self._set(TensorFile(self.private.path / round_files(index + 1)[0]).items())
        return norm

    def _start_for_client(self) -> dict[str, Tensor] | None:
        """theta_0, where the client is given that; it is theta itself where theta changes only at the end."""
        if self.args.client_reference == "copy":
            return None
        keep = self.args.rounds_R > 1
        return {n: p.detach().clone() if keep else p.detach() for n, p in self.model.named_parameters()}

    def _replies(self, index: int) -> dict[int, Reply]:
        """What the round's finished copies returned."""
        folder = self._reply_folder(index)
        return read_replies(folder, self._run, index) if (folder / MANIFEST).exists() else {}

    def _reply_folder(self, index: int) -> Path:
        return self.private.path / "reply" / round_name(index)

    def _copies(self, publication: Publication, own: range, working_copy: nn.Module) -> None:
        """Publish and unlearn each of this process's copies that is not finished yet."""
        folder = self._reply_folder(publication.index)
        folder.mkdir(parents=True, exist_ok=True)
        finished = self._replies(publication.index)
        for k in own:
            if k not in finished:
                digest = self._copy(publication, k, working_copy, folder / f"{copy_name(k)}.safetensors")
                entry = {"copy": k + 1, "method": self.args.method, "steps": self.local_steps}
                entry |= {"kind": DIFFERENCE, "sha256": digest}
                add_reply(folder, self._run, publication.index, entry)

    def _copy(self, publication: Publication, k: int, working_copy: nn.Module, path: Path) -> str:
        """Publish and unlearn copy k, and write what changed; the file's digest."""
        published = self._publish(publication, k, working_copy)
        run_dir = self.run_dir / f"pum_{round_name(publication.index)}_{copy_name(k)}"
        # Held once where it can be: to compare with, and to take the difference from.
        held = published if self.accumulate_device == self.args.device else None
        self.client_reference = self._start or held
        self.inner(working_copy, run_dir, self.local_steps)
        self.client_reference = None
        for parameter in working_copy.parameters():
            parameter.grad = None
        updates = difference(working_copy, published, self.layout)
        return write_tensors(path, difference_layout(self.layout), updates)

    @torch.no_grad()
    def _publish(self, publication: Publication, k: int, working_copy: nn.Module) -> dict[str, Tensor]:
        """Write copy k into the working copy; what was written, on accumulate_device."""
        targets, published = dict(working_copy.named_parameters()), {}
        for name, tensor in publication.copy(k):
            targets[name].copy_(tensor)
            targets[name].grad = None
            published[name] = tensor.to(self.accumulate_device)
        return published

    def _merge(self, publication: Publication) -> float:
        """Merge the round's replies into theta and write it down; the norm of the merged update."""
        index = publication.index
        replies = self._replies(index)
        merged = merge_differences(
            (replies[k].open(self.layout) for k in range(self.args.copies_m)),
            publication,
            self.groups,
            self.layout,
            device=self.accumulate_device,
        )
        norm = self._apply(merged)
        theta, reference = round_files(index + 1)
        files = self.private.write(theta, self.layout, self.model.named_parameters())
        if self.reference and index + 1 < self.args.rounds_R:
            files |= self.private.write(reference, layout_of(self.reference.items()), self.reference.items())
        self.private.append({"round": index + 1, "files": files})
        self.private.drop(*round_files(index))
        shutil.rmtree(self._reply_folder(index))
        return norm

    @torch.no_grad()
    def _apply(self, merged: Mapping[str, Tensor]) -> float:
        """theta <- theta + merged, computed in float32; returns the update's L2 norm."""
        check_update(merged, {name: kind.shape for name, kind in self.layout.items()})
        self._set(applied(dict(self.model.named_parameters()), merged))
        return l2_norm(merged.values())

    @torch.no_grad()
    def _set(self, theta: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.model.named_parameters())
        for name, tensor in theta:
            parameters[name].copy_(tensor)

    def _write_result(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / "privacy.json", self.privacy())
        self.save_model(str(self.run_dir))
        if self.args.fingerprint:
            record_fingerprint(self.model, self.run_dir, f"PUM {self.args.method}")

    def _unlearn(self, model: nn.Module, run_dir: Path, max_steps: int) -> None:
        """The client of the default run: the same rows for every copy of a round.

        The affine case cancels only if all copies of a round see the same batches. What a method draws once a run
        (RMU's direction) hangs on the seed, which stays.
        """
        args = self.args
        assert self.data is not None
        assert args.data_seed is not None
        unlearn(
            model,
            self.data,
            args,
            str(run_dir),
            max_steps=max_steps,
            adapters=LoraSettings(args.lora_r, args.lora_alpha, seed=args.seed) if args.lora else None,
            data_seed=args.data_seed + self.round_index,
            tokenizer=self.tokenizer,
            reference=self.client_reference,
        )
