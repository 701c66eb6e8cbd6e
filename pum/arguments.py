"""`PUMArguments`: every setting of PUM, named as in the run guide (arXiv 2602.23798)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import yaml  # type: ignore[import-untyped]

from pum.calibration import ALLOCATIONS, DEFAULT_ORDERS
from pum.unlearn import METHODS
from pum.unlearn.arguments import UnlearnArguments
from src.lora import LoraSettings
from src.utils import UserError

ACCOUNTINGS = ("paper", "joint")
ALPHAS = ("uniform", "fixed")
REFERENCES = ("copy", "server")
if TYPE_CHECKING:
    ListText = Any  # a list of floats or strings, or None, once the arguments are made
else:
    ListText = str  # what the command line gives
LIST_HELP = " A YAML or JSON list of numbers, or null."


@dataclass
class PUMArguments(UnlearnArguments):
    """The inner run's `UnlearnArguments` (of the plain run it is compared with) and the settings around it.

    Defaults are the guide's.

    Lists may be given as YAML or JSON text; after construction they are lists of floats (of strings for
    `center_clip_ref_model_paths`) or None. Contradictions raise `UserError`.
    """

    copies_m: int = field(default=4, metadata={"help": "Perturbed copies a round, m."})
    rounds_R: int = field(default=1, metadata={"help": "Rounds, R."})  # the guide's name
    alpha_min: float = field(default=1.0, metadata={"help": "Least secret scaling; at least 1."})
    alpha_max: float = field(default=1.0, metadata={"help": "Largest secret scaling."})
    alphas: str = field(
        default="uniform",
        metadata={"help": "uniform: secret draws; fixed: 1 + k/(m-1), known to all, as in the paper's code."},
    )
    eta_srv: float = field(default=1.0, metadata={"help": "Server step size."})
    theta_ref_beta: float = field(default=0.8, metadata={"help": "EMA weight of the clipping reference."})
    server_center_clipping: bool | None = field(
        default=None, metadata={"help": "Clip the centre; null: where a threshold or a sensitivity is given."}
    )
    center_clip_C_per_layer: ListText = field(
        default=None, metadata={"help": "Thresholds C_l, D_l = 2 C_l." + LIST_HELP}
    )
    center_clip_C_global: float | None = field(
        default=None, metadata={"help": "Threshold of what lies outside the layers."}
    )
    center_reference_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Public model as first reference; null: the starting model, which clipping cannot bound."
        },
    )
    jitter_tau: float = field(default=0.0, metadata={"help": "Standard deviation of each copy's own noise, tau."})
    center_clip_quantile_q: float = field(default=0.95, metadata={"help": "Quantile over the reference models."})
    center_clip_quantile_kappa: float = field(default=1.25, metadata={"help": "Factor on the quantile."})
    center_clip_round_gamma: float = field(
        default=1.3, metadata={"help": "Factor on quantile thresholds each further round."}
    )
    center_clip_ref_model_paths: ListText = field(
        default=None, metadata={"help": "Public reference models: a YAML or JSON list of folders, or null."}
    )
    per_layer_noise: bool = field(
        default=False, metadata={"help": "Calibrate one sigma a layer, else one for all."}
    )
    dp_epsilon: float | None = field(default=None, metadata={"help": "Target epsilon; null: manual noise."})
    dp_delta: float | None = field(default=None, metadata={"help": "Target delta."})
    dp_rdp_orders: ListText = field(
        default=None, metadata={"help": f"Renyi orders; null: {list(DEFAULT_ORDERS)}." + LIST_HELP}
    )
    dp_per_layer_allocation: str = field(default="auto", metadata={"help": ", ".join(ALLOCATIONS) + "."})
    dp_sensitivity_per_layer_l2: ListText = field(
        default=None, metadata={"help": "Sensitivities D_l." + LIST_HELP}
    )
    dp_sensitivity_total_l2: float | None = field(
        default=None, metadata={"help": "Sensitivity of all together, split as D/sqrt(L)."}
    )
    dp_use_worstcase_alpha: bool = field(
        default=True,
        metadata={"help": "S_alpha = m/alpha_min^2, else its mean over alphas, where these are drawn uniformly."},
    )
    dp_accounting: str = field(
        default="paper",
        metadata={"help": "Calibrate by the guide's formula (paper) or what holds of m copies (joint)."},
    )
    sigma: float = field(default=0.0, metadata={"help": "Manual noise of all parameters."})
    sigma_rms: float | None = field(
        default=None, metadata={"help": "In the place of sigma: this share of the weights' root mean square."}
    )
    sigma_per_layer: ListText = field(
        default=None, metadata={"help": "Manual noise a layer; outside the layers sigma holds." + LIST_HELP}
    )
    kappa: float | None = field(
        default=None,
        metadata={
            "help": "In the place of sigma: in each layer this share of the root mean square of what fine-tuning"
            " changed; nothing outside the layers."
        },
    )
    kappa_base_model_path: str | None = field(
        default=None, metadata={"help": "Public model that kappa measures from; null: from zero, with a warning."}
    )
    inner_handler: str | None = field(default=None, metadata={"help": "Inner method; null: method."})
    local_epochs: float | None = field(
        default=None, metadata={"help": "Epochs on each copy; null: num_train_epochs, shared (auto_balance)."}
    )
    local_max_steps: int | None = field(default=None, metadata={"help": "Most steps on a copy, or null."})
    auto_balance: bool = field(
        default=True,
        metadata={"help": "Without local_epochs and local_max_steps: local steps x R = steps of the plain run."},
    )
    client_reference: str = field(
        default="copy",
        metadata={
            "help": "What NPO, DPO and UNDIAL compare with: the copy before training, or the starting model itself"
            " (server), as in the paper's code, which hands the model to the client."
        },
    )
    clip_update_norm: float | None = field(
        default=None, metadata={"help": "L2 clip of an aligned update; null or at most 0: none."}
    )
    clip_update_norm_per_layer: ListText = field(
        default=None, metadata={"help": "L2 clips a layer, at most 0 for none." + LIST_HELP}
    )
    use_orthogonal_reparam: bool = field(default=False, metadata={"help": "Disguise each copy."})
    lora: bool = field(default=False, metadata={"help": "The client trains LoRA adapters and merges them."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters, alpha."})
    accumulate_device: str | None = field(
        default=None, metadata={"help": "Where S1, noise sums and references are held; null: the model's device."}
    )
    secret_seed: int | None = field(
        default=None, metadata={"help": "Reproducible secrets for experiments. Such a run is not private."}
    )

    def __post_init__(self) -> None:
        self._parse_lists()
        self._check_numbers()
        self._check_pairs()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("PUM's processes train alone: call pum.workers.join() first, as pum.run_pum does")
        if self.inner_handler is not None:
            self.method = self.inner_handler
        if self.method not in METHODS:
            raise UserError(f"unknown inner method '{self.method}'; known: {', '.join(METHODS)}")
        super().__post_init__()
        self._n_gpu = min(self.n_gpu, 1)  # otherwise Trainer wraps the model in DataParallel

    @property
    def worst_case_alpha(self) -> bool:
        """Whether S_alpha is m/alpha_min^2; its mean over uniform alphas says nothing of fixed ones."""
        return self.dp_use_worstcase_alpha or self.alphas == "fixed"

    @property
    def orders(self) -> Sequence[float]:
        """The Renyi orders."""
        return DEFAULT_ORDERS if self.dp_rdp_orders is None else self.dp_rdp_orders

    def _parse_lists(self) -> None:
        for name in ("center_clip_C_per_layer", "dp_sensitivity_per_layer_l2", "sigma_per_layer"):
            setattr(self, name, number_list(name, getattr(self, name), least=0.0))
        name = "clip_update_norm_per_layer"
        limits = parsed(name, getattr(self, name))
        if isinstance(limits, list):
            limits = [0.0 if limit is None else limit for limit in limits]
        setattr(self, name, number_list(name, limits, least=-math.inf))
        if self.clip_update_norm is not None and self.clip_update_norm <= 0.0:
            self.clip_update_norm = None
        self.dp_rdp_orders = number_list("dp_rdp_orders", self.dp_rdp_orders, least=1.0, strictly=True)
        self.center_clip_ref_model_paths = text_list(
            "center_clip_ref_model_paths", self.center_clip_ref_model_paths
        )

    def _check_numbers(self) -> None:
        for name in ("copies_m", "rounds_R"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.local_max_steps is not None and self.local_max_steps < 1:
            raise UserError(f"local_max_steps must be at least 1 or null, got {self.local_max_steps}")
        if not 1.0 <= self.alpha_min <= self.alpha_max < math.inf:
            raise UserError(f"1 <= alpha_min <= alpha_max is needed, got {self.alpha_min} and {self.alpha_max}")
        for name in ("theta_ref_beta", "center_clip_quantile_q"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in (
            "sigma",
            "sigma_rms",
            "kappa",
            "jitter_tau",
            "center_clip_C_global",
            "dp_sensitivity_total_l2",
        ):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise UserError(f"{name} must be finite and at least 0, got {value}")
        positive = ("dp_epsilon", "local_epochs", "clip_update_norm", "center_clip_quantile_kappa", "eta_srv")
        for name in (*positive, "center_clip_round_gamma"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise UserError(f"{name} must be finite and above 0, got {value}")
        LoraSettings(self.lora_r, self.lora_alpha)  # refuses what it cannot take
        if self.dp_delta is not None and not 0.0 < self.dp_delta < 1.0:
            raise UserError(f"dp_delta must lie strictly between 0 and 1, got {self.dp_delta}")

    def _check_pairs(self) -> None:
        if self.dp_per_layer_allocation not in ALLOCATIONS:
            found, known = self.dp_per_layer_allocation, ", ".join(ALLOCATIONS)
            raise UserError(f"unknown dp_per_layer_allocation '{found}'; known: {known}")
        if self.dp_accounting not in ACCOUNTINGS:
            raise UserError(f"unknown dp_accounting '{self.dp_accounting}'; known: {', '.join(ACCOUNTINGS)}")
        if (self.dp_epsilon is None) != (self.dp_delta is None):
            raise UserError("dp_epsilon and dp_delta belong together: give both or neither")
        if self.dp_accounting == "joint" and self.dp_epsilon is None:
            raise UserError("dp_accounting joint calibrates to a target: give dp_epsilon and dp_delta")
        widths = self.dp_sensitivity_per_layer_l2, self.dp_sensitivity_total_l2, self.center_clip_ref_model_paths
        thresholds = self.center_clip_C_per_layer
        if self.dp_epsilon is not None and thresholds is None and all(value is None for value in widths):
            raise UserError(
                "dp_epsilon needs a sensitivity: dp_sensitivity_per_layer_l2, dp_sensitivity_total_l2,"
                " center_clip_C_per_layer or center_clip_ref_model_paths"
            )
        if thresholds is not None and self.center_clip_ref_model_paths is not None:
            raise UserError("give one of center_clip_C_per_layer and center_clip_ref_model_paths")
        manual = {
            "sigma": self.sigma,
            "sigma_rms": self.sigma_rms,
            "kappa": self.kappa,
            "sigma_per_layer": max(self.sigma_per_layer or (0.0,)),
        }
        given = [name for name, value in manual.items() if value]
        if len(given) > 1 and given != ["sigma", "sigma_per_layer"]:
            raise UserError(f"give one of {' and '.join(given)}")
        if self.copies_m == 1 and given:
            raise UserError("copies_m 1 has no zero-sum noise: use at least 2 copies, or sigma 0 and jitter_tau")
        for name, words in (("alphas", ALPHAS), ("client_reference", REFERENCES)):
            if getattr(self, name) not in words:
                raise UserError(f"unknown {name} '{getattr(self, name)}'; known: {', '.join(words)}")
        if self.alphas == "fixed":
            self.alpha_min, self.alpha_max = 1.0, 2.0 if self.copies_m > 1 else 1.0
        if self.client_reference == "server" and self.lora:
            raise UserError("client_reference server compares whole models: drop --lora")
        if self.accumulate_device is not None:
            try:
                torch.empty(0, device=self.accumulate_device)
            except (RuntimeError, AssertionError) as error:
                raise UserError(f"accumulate_device '{self.accumulate_device}' cannot be used") from error


def parsed(name: str, value: Any) -> Any:
    """Text read as YAML (of which JSON is a part); anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not a YAML or JSON list: '{value}'") from error


def number_list(name: str, value: Any, *, least: float, strictly: bool = False) -> list[float] | None:
    """A list of finite numbers of at least (strictly: above) `least`, or None for null."""
    found = parsed(name, value)
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not found:
        raise UserError(f"{name} must be a list of numbers or null, got '{value}'")
    numbers = []
    for entry in found:
        # YAML reads 1e-3 as text: it wants 1.0e-3.
        if isinstance(entry, bool) or not isinstance(entry, int | float | str):
            raise UserError(f"{name} must hold numbers, got '{entry}'")
        try:
            number = float(entry)
        except ValueError as error:
            raise UserError(f"{name} must hold numbers, got '{entry}'") from error
        if not math.isfinite(number) or number < least or (strictly and number == least):
            raise UserError(
                f"{name} must hold finite numbers {'above' if strictly else 'from'} {least}, got {entry}"
            )
        numbers.append(number)
    return numbers


def text_list(name: str, value: Any) -> list[str] | None:
    """A list of strings, or None for null."""
    found = parsed(name, value)
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not found or not all(isinstance(entry, str) for entry in found):
        raise UserError(f"{name} must be a list of names or null, got '{value}'")
    return list(found)
