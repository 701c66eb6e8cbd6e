"""`PUMTrainer`: perturb, unlearn, merge (arXiv 2602.23798) around any inner unlearning routine."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer
from transformers.trainer_utils import TrainOutput

from pum.aggregate import HarmonicMean, check_update, clip_update, l2_norm
from pum.arguments import PUMArguments
from pum.center import (
    center,
    clip_scales,
    count_layers,
    distances,
    groups_of,
    layer_distances,
    update_reference,
)
from pum.kappa import kappa_sigmas
from pum.noise import SecretSource, ZeroSumStream, draw_alphas, jitter_noise
from pum.plan import KAPPA, NoisePlan, make_plan
from pum.privacy import report
from pum.reparam import Disguise, check_model
from pum.unlearn import get_method
from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.data import UnlearnData
from pum.unlearn.trainer import UnlearnTrainer, record_fingerprint, steps_an_epoch
from src.lora import LoraSettings, add_lora
from src.models import load_model
from src.utils import UserError, write_json

Inner = Callable[[nn.Module, Path, int], None]

logger = logging.getLogger(__name__)

__all__ = ["Inner", "PUMArguments", "PUMTrainer"]


class PUMTrainer(Trainer):
    """A `Trainer` whose `train` runs R rounds of: publish m disguised noisy copies, unlearn on each, merge.

    It differs from the base in `train` alone, which does not call the base's loop: the gradient steps are the
    inner routine's. `model` is the server's theta; it changes only at the end of a round, so an error in a copy
    leaves it as it was. Server and client share this process: who sees what is in pum/README.md.

    In memory, whatever m is: theta, one copy, the copy as published, S1, the noise's running sums; with centre
    clipping also the reference, and its mean where rounds follow.

    Args:
        model: the server's model, without adapters.
        args: PUM's settings and the inner run's.
        data: forget and retain rows of the client, for the default inner routine.
        inner: what the client does: `inner(model, run_dir, max_steps)` trains `model` in place. Default: an
            `UnlearnTrainer`, with LoRA adapters that are merged at its end where `args.lora` is set.

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
        self.secrets = SecretSource(args.secret_seed)
        self.accumulate_device = torch.device(args.accumulate_device or args.device)
        self.groups = groups_of(model)
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if args.use_orthogonal_reparam:
            check_model(model)
        self.plan = self._make_plan()
        self.local_steps = self._count_local_steps()
        self.round_index = 0
        self.client_reference: Mapping[str, Tensor] | None = None
        self.reference = self._first_reference() if self.plan.thresholds else {}
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        for warning in self.plan.warnings:
            logger.warning(warning)

    @property
    def run_dir(self) -> Path:
        return Path(str(self.args.output_dir))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """All rounds; then the merged model, the tokenizer and `privacy.json` in the output folder."""
        if any(args) or any(kwargs.values()):
            raise UserError("a PUM run cannot be resumed; start a new one in another output folder")
        begin = time.perf_counter()
        working_copy = copy.deepcopy(self.model)
        start = self._start_for_client()
        for index in range(self.args.rounds_R):
            merged = self._round(index, working_copy, start)
            norm = self._apply(merged)
            self.state.global_step += self.local_steps
            self.log({"round": index + 1, "merged_update_norm": norm, "local_steps": self.local_steps})
        del working_copy
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / "privacy.json", self.privacy())
        self.save_model(str(self.run_dir))
        if self.args.fingerprint:
            record_fingerprint(self.model, self.run_dir, f"PUM {self.args.method}")
        seconds = time.perf_counter() - begin
        return TrainOutput(self.state.global_step, math.nan, {"train_runtime": seconds})

    def privacy(self) -> dict[str, Any]:
        """Both bounds, what they cover and what is published bare: the content of `privacy.json`."""
        sizes = {name: (self.groups[name], shape.numel()) for name, shape in self._shapes.items()}
        return report(
            self.plan,
            self.args,
            sizes,
            secrets=self.secrets.label,
            reference_is_public=self.args.center_reference_model_path is not None,
        )

    def _round(
        self, index: int, working_copy: nn.Module, start: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Publish, unlearn and merge once: eta S1/S0, while theta stays as it is.

        The client compares with `start`, or with its copy before training.
        """
        args, m, self.round_index = self.args, self.args.copies_m, index
        alphas = draw_alphas(m, args.alpha_min, args.alpha_max, self.secrets.generator("alpha", index))
        if args.alphas == "fixed":
            alphas = [1.0 + k / max(m - 1, 1) for k in range(m)]
        if args.kappa and index and self.plan.schedule == KAPPA:
            self.plan.sigmas.update(kappa_sigmas(self.model, args.kappa, args.kappa_base_model_path))
        scales = self._clip_scales(index)
        noise = ZeroSumStream(m, self.accumulate_device)
        merge = HarmonicMean(args.eta_srv, self.accumulate_device, self._shapes)
        keep_mean = bool(self.reference) and index + 1 < args.rounds_R
        mean = {name: torch.zeros_like(tensor) for name, tensor in self.reference.items()} if keep_mean else {}
        for k, alpha in enumerate(alphas):
            disguise = None
            if args.use_orthogonal_reparam:
                disguise = Disguise.sample(self.model, self.secrets.generator("disguise", index, k))
            published = self._publish(index, k, alpha, scales, noise, disguise, working_copy, mean)
            folder = self.run_dir / f"pum_round{index + 1}_copy{k + 1}"
            # Held once where it can be: to compare with, and to take the difference from.
            self.client_reference = start or (published if self.accumulate_device == args.device else None)
            self.inner(working_copy, folder, self.local_steps)
            merge.add(self._aligned_update(working_copy, published, disguise), alpha)
        if keep_mean:
            update_reference(self.reference, mean, args.theta_ref_beta)
        return merge.result()

    @torch.no_grad()
    def _publish(
        self,
        index: int,
        k: int,
        alpha: float,
        scales: Mapping[int | None, float],
        noise: ZeroSumStream,
        disguise: Disguise | None,
        working_copy: nn.Module,
        mean: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Write T_k(theta~ + alpha_k e_k + xi_k) into the working copy; what was written, on accumulate_device.

        Sums and disguise are computed in float32 and rounded once to the model's dtype.
        """
        zero_sum, jitter = (self.secrets.generator(kind, index, k) for kind in ("noise", "jitter"))
        theta = dict(self.model.named_parameters())
        published = {}
        for name, target in working_copy.named_parameters():
            group, parameter = self.groups[name], theta[name]
            value = center(parameter, self.reference.get(name, parameter), scales.get(group, 1.0))
            if sigma := self.plan.sigmas[group]:
                draw = noise.draw(name, parameter.shape, sigma, zero_sum)
                value.add_(draw.to(value.device), alpha=alpha)
            if self.plan.jitter:
                value.add_(jitter_noise(parameter.shape, self.plan.jitter, jitter).to(value.device))
            if name in mean:
                mean[name].add_(value.to(mean[name].device), alpha=1.0 / self.args.copies_m)
            target.copy_(value if disguise is None else disguise.move(name, value))
            target.grad = None
            published[name] = target.detach().to(self.accumulate_device, copy=True)
        return published

    def _aligned_update(
        self, working_copy: nn.Module, published: dict[str, Tensor], disguise: Disguise | None
    ) -> dict[str, Tensor]:
        """D_k = T_k^-1(D'_k), clipped where the settings say so; `published` is used up."""
        update = self._difference(working_copy, published)
        if disguise is not None:
            for name in update:
                update[name] = disguise.move(name, update[name], inverse=True)
        limits, total = self.args.clip_update_norm_per_layer, self.args.clip_update_norm
        clip_update(update, self.groups.get, per_layer=limits, total=total)
        return update

    @torch.no_grad()
    def _difference(self, working_copy: nn.Module, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the client changed, D'_k, float32 on accumulate_device; `published` is used up."""
        returned = dict(working_copy.named_parameters())
        if {name: tensor.shape for name, tensor in returned.items()} != self._shapes:
            wrong = [
                name
                for name, shape in self._shapes.items()
                if name not in returned or returned[name].shape != shape
            ]
            raise UserError(
                f"the client returned a copy whose {(wrong or sorted(returned))[0]} has another name or shape"
            )
        update = {}
        for name, tensor in returned.items():
            tensor.grad = None
            before = published.pop(name).float()
            update[name] = before.neg_().add_(tensor.detach().to(self.accumulate_device).float())
        check_update(update, self._shapes)
        return update

    @torch.no_grad()
    def _apply(self, merged: Mapping[str, Tensor]) -> float:
        """theta <- theta + merged, computed in float32; returns the update's L2 norm."""
        check_update(merged, self._shapes)
        for name, parameter in self.model.named_parameters():
            precise = torch.promote_types(parameter.dtype, torch.float32)
            parameter.copy_(parameter.to(precise) + merged[name].to(parameter.device, precise))
        return l2_norm(list(merged.values()))

    def _start_for_client(self) -> dict[str, Tensor] | None:
        """theta_0, where the client is given that; it is theta itself as long as no round follows."""
        if self.args.client_reference == "copy":
            return None
        keep = self.args.rounds_R > 1
        return {n: p.detach().clone() if keep else p.detach() for n, p in self.model.named_parameters()}

    def _clip_scales(self, index: int) -> dict[int | None, float]:
        if not self.reference:
            return {}
        thresholds = self.plan.thresholds_of_round(index)
        return clip_scales(distances(dict(self.model.named_parameters()), self.reference, self.groups), thresholds)

    def _first_reference(self) -> dict[str, Tensor]:
        """theta_ref of the first round, float32 on accumulate_device: the public model, else theta_0."""
        source, path = self.model, self.args.center_reference_model_path
        if path is not None:
            source = load_model(path)[0]
            if {name: parameter.shape for name, parameter in source.named_parameters()} != self._shapes:
                raise UserError(f"center_reference_model_path '{path}' has other parameters than the model")
        return {
            name: parameter.detach().to(self.accumulate_device, torch.float32, copy=True)
            for name, parameter in source.named_parameters()
        }

    def _make_plan(self) -> NoisePlan:
        paths = self.args.center_clip_ref_model_paths
        norms = None
        if paths is not None:
            base = self._first_reference()
            norms = [layer_distances(load_model(path)[0], base, path) for path in paths]
        outside = None in self.groups.values()
        weights = list(self.model.parameters())
        rms = l2_norm(weights) / math.sqrt(sum(weight.numel() for weight in weights))
        kappa, public = self.args.kappa, self.args.kappa_base_model_path
        plan = make_plan(
            self.args,
            count_layers(self.groups),
            outside=outside,
            reference_norms=norms,
            weights_rms=rms,
            kappa_sigmas=None if kappa is None else kappa_sigmas(self.model, kappa, public),
        )
        if norms is not None and self.args.center_reference_model_path is None:
            plan.warnings.append(
                "the quantile policy measures from the protected model itself: give center_reference_model_path"
            )
        return plan

    def _count_local_steps(self) -> int:
        """Steps on each copy: of local_epochs; else balanced, R times them are the plain run's, rounded up."""
        args = self.args
        steps = args.max_steps
        if self.data is not None and (steps < 1 or args.local_epochs is not None):
            epochs = args.local_epochs if args.local_epochs is not None else args.num_train_epochs
            assert epochs is not None
            rows, accumulation = len(self.data.forget), args.gradient_accumulation_steps
            steps = math.ceil(epochs * steps_an_epoch(rows, args.train_batch_size, accumulation))
        if steps < 1:
            steps = args.local_max_steps or 0
        if steps < 1:
            raise UserError("the local steps are not known: give local_max_steps or max_steps")
        if args.local_max_steps is not None:
            return min(steps, args.local_max_steps)
        balanced = args.auto_balance and args.local_epochs is None
        return math.ceil(steps / args.rounds_R) if balanced else steps

    def _unlearn(self, model: nn.Module, run_dir: Path, max_steps: int) -> None:
        """The client of the default run: an `UnlearnTrainer` without checkpoints, the same rows for every copy."""
        args = self.args
        assert self.data is not None
        assert args.data_seed is not None
        settings = {item.name: getattr(args, item.name) for item in fields(UnlearnArguments) if item.init}
        settings |= {
            "output_dir": str(run_dir),
            "max_steps": max_steps,
            "save_strategy": "no",
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "fingerprint": False,
            # The affine case cancels only if all copies of a round see the same batches. What a method draws
            # once a run (RMU's direction) hangs on the seed, which stays.
            "data_seed": args.data_seed + self.round_index,
        }
        trained: nn.Module = model
        if args.lora:
            assert isinstance(model, PreTrainedModel)
            trained = add_lora(model, LoraSettings(args.lora_r, args.lora_alpha, seed=args.seed))
        trainer = UnlearnTrainer(
            trained,
            UnlearnArguments(**settings),
            self.data,
            processing_class=self.tokenizer,
            reference=None if args.lora else self.client_reference,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if args.lora:
            trained.merge_and_unload()  # type: ignore[operator]
