"""Attack PACZero's mechanisms and compare with the bounds: `bash scripts/audit.sh`.

Every private setting must stay within its bound, PAC-ZPL at blind guessing, and every broken control must be
caught. Prints a table, writes `audit.json` and `audit.png`; exit code 1 where that does not hold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from paczo import universe
from paczo.attack import (
    ABSTAINS,
    ATTACKS,
    CHARGES,
    Setting,
    attacks_on,
    clopper_pearson,
    index_hits,
    member_hits,
    play,
)
from paczo.bounds import posterior_success
from src.utils import Parser, UserError, one_line, run_cli, write_json

BUDGETS = (0.05, 0.11, 0.33, 0.68)
ZPL_MARGIN = 0.02


@dataclass
class AuditArguments:
    """How much is attacked."""

    runs: int = field(
        default=1200, metadata={"help": "Runs of each PAC-MI setting; others get four times as many."}
    )
    seed: int = field(default=0, metadata={"help": "Of the runs' data and secrets."})
    workers: int = field(default=2, metadata={"help": "Processes."})
    out: str = field(default="result/audit", metadata={"help": "Folder for audit.json and audit.png."})

    def __post_init__(self) -> None:
        for name in ("runs", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Finding:
    """One attack on one setting: its success beside blind guessing and the bound."""

    setting: Setting
    attack: str
    target: str
    trials: int
    hits: int
    prior: float
    bound: float
    low: float
    high: float

    @property
    def success(self) -> float:
        return self.hits / self.trials

    @property
    def above_bound(self) -> bool:
        """Significantly so: the whole 99 % interval is."""
        return self.low > self.bound


def settings() -> list[Setting]:
    """PAC-MI with both charges at several budgets and PAC-ZPL with coins and without, with K of 1 and 4; then what
    must be caught.

    One release between two subsets that are each other's complement is the case that is closest to the bound.
    """
    private = [Setting("pac-mi", nats, nats, k) for nats in BUDGETS for k in (1, 4)]
    private += [Setting("pac-mi-bit", nats, nats, k) for nats, k in zip(BUDGETS, (1, 4, 1, 4), strict=True)]
    private += [Setting(name, nats, nats, 1, num_subsets=2, steps=1) for name in CHARGES for nats in BUDGETS]
    private += [Setting(name, 0.0, 0.0, k) for name in ABSTAINS for k in (1, 4)]
    controls = [
        Setting("pac-mi", nats, 20 * nats, k, num_subsets=2) for nats, k in ((0.05, 1), (0.11, 1), (0.11, 4))
    ]
    controls.append(Setting("pac-mi-bit", 0.11, 2.2, num_subsets=2))
    controls += [Setting("zpl-follows-secret", 0.0, 0.0, k) for k in (1, 4)]
    controls += [Setting("quant_half", nats, nats, k) for nats in (0.0, 0.33) for k in (1, 4)]
    return private + controls


def attack(setting: Setting, runs: int, seed: int) -> list[Finding]:
    """All attacks that fit the setting, on S* and on the membership of one sample."""
    played = play(setting, runs if setting.mechanism in CHARGES else 4 * runs, seed)
    rng = np.random.default_rng([seed, 1])
    findings = []
    for name in attacks_on(setting.mechanism):
        values = ATTACKS[name](played)
        for target, prior, count in (
            ("S*", 1.0 / setting.num_subsets, index_hits),
            ("member", 0.5, member_hits),
        ):
            hits, trials = count(played, values, rng), len(played.secret)
            bound = posterior_success(setting.claimed_nats, prior)
            low, high = clopper_pearson(hits, trials)
            findings.append(Finding(setting, name, target, trials, hits, prior, bound, low, high))
    return findings


def problems(findings: Sequence[Finding]) -> list[str]:
    """What the audit must report as wrong; empty where theory and code agree."""
    found = []
    for finding in findings:
        label = f"{finding.setting.name}: {finding.attack} on {finding.target}"
        private = not finding.setting.is_control
        if private and finding.above_bound:
            found.append(f"{label} succeeds above its bound: {finding.low:.4f} > {finding.bound:.4f}")
        if finding.setting.mechanism in ABSTAINS and abs(finding.success - finding.prior) > ZPL_MARGIN:
            found.append(f"{label} is {finding.success - finding.prior:+.4f} off blind guessing")
    for setting in {f.setting for f in findings if f.setting.is_control}:
        if not any(f.above_bound for f in findings if f.setting == setting):
            found.append(f"{setting.name}: the control was not caught")
    return found


def table(findings: Sequence[Finding]) -> str:
    """The strongest attack of each setting on each target; `audit.json` has all of them."""
    strongest: dict[tuple[Setting, str], Finding] = {}
    for finding in sorted(findings, key=lambda f: f.success):
        strongest[finding.setting, finding.target] = finding
    chosen = sorted(strongest.values(), key=lambda f: findings.index(f))
    width = max(len(f.setting.name) for f in chosen)
    rows = [f"{'setting':<{width}}  {'on':<6} {'strongest':<14} {'prior':>6} {'success (99 %)':>23} {'bound':>7}"]
    for f in chosen:
        verdict = ("caught" if f.setting.is_control else "ABOVE") if f.above_bound else "within"
        interval = f"{f.success:.4f} ({f.low:.4f}-{f.high:.4f})"
        rows.append(
            f"{f.setting.name:<{width}}  {f.target:<6} {f.attack:<14} {f.prior:>6.4f} {interval:>23}"
            f" {f.bound:>7.4f} {verdict}"
        )
    return "\n".join(rows)


def draw(findings: Sequence[Finding], path: Path) -> None:
    """Success of the membership attacks against the stated budget, with the bound's curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 4.5), layout="constrained")
    nats = np.linspace(0.0, 0.8, 200)
    axes.plot(nats, [posterior_success(float(x)) for x in nats], color="black", label="bound")
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":", label="blind guess")
    groups = {
        "K = 1": ("o", lambda s: not s.is_control and s.directions == 1 and s.num_subsets > 2),
        "K = 4": ("s", lambda s: not s.is_control and s.directions == 4),
        "one release, two subsets": ("D", lambda s: s.mechanism == "pac-mi" and s.steps == 1),
        "the same, by the bit": ("^", lambda s: s.mechanism == "pac-mi-bit" and s.steps == 1),
        "broken control": ("x", lambda s: s.is_control),
    }
    for number, (label, (marker, belongs)) in enumerate(groups.items()):
        chosen = [
            f for f in findings if f.target == "member" and belongs(f.setting) and f.attack != "bits and sigma"
        ]
        strongest = {f.setting: f for f in sorted(chosen, key=lambda f: f.success)}.values()
        points = sorted(strongest, key=lambda f: f.setting.claimed_nats)
        place = [f.setting.claimed_nats + 0.004 * (number - 1) for f in points]
        height = [f.success for f in points]
        error = [[f.success - f.low for f in points], [f.high - f.success for f in points]]
        axes.errorbar(place, height, error, fmt=marker, markersize=5, capsize=2, label=label)
    axes.set(xlabel="stated budget in nats (0: PAC-ZPL)", ylabel="success of the best membership attack")
    axes.set_ylim(0.45, 1.02)
    figure.legend(loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["universe"]:
        universe.audit(words[1:], universe.paczo_rows())
        return
    (args,) = Parser((AuditArguments,)).parse(words)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use the output folder {out}: {error.strerror}") from error
    begin = time.perf_counter()
    chosen = settings()
    seeds = range(args.seed, args.seed + len(chosen))
    if args.workers == 1:
        found = [attack(setting, args.runs, seed) for setting, seed in zip(chosen, seeds, strict=True)]
    else:
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(attack, chosen, [args.runs] * len(chosen), seeds))
    findings = [finding for several in found for finding in several]
    wrong = problems(findings)
    print(table(findings))
    report: dict[str, Any] = {
        "arguments": asdict(args),
        "findings": [{**asdict(f), "success": f.success, "above_bound": f.above_bound} for f in findings],
        "problems": wrong,
    }
    try:
        write_json(out / "audit.json", report)
        draw(findings, out / "audit.png")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {one_line(error)}") from error
    print(f"{len(findings)} attacks in {time.perf_counter() - begin:.0f} s; wrote {out}/audit.json and audit.png")
    for line in wrong:
        print(f"PROBLEM: {line}")
    if wrong:
        sys.exit(1)
    print("every private setting is within its bound, and every broken control was caught")


if __name__ == "__main__":
    run_cli(main)
