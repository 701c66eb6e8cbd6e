"""Settings: strict lists, contradictions; the noise they lead to; what privacy.json says about it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from pum.arguments import PUMArguments
from pum.calibration import joint_epsilon, joint_jitter, paper_epsilon, paper_sigmas
from pum.plan import make_plan
from pum.privacy import report
from src.utils import UserError

SIZES: dict[str, tuple[int | None, int]] = {"layers.0.w": (0, 60), "layers.1.w": (1, 30), "embed": (None, 10)}


def arguments(**settings: Any) -> PUMArguments:
    base = {"output_dir": "unused", "use_cpu": True, "alpha_max": 1.5, "per_layer_noise": True}
    return PUMArguments(**{**base, **settings})


def told(args: PUMArguments, *, public: bool = False, **plan: Any) -> dict[str, Any]:
    found = report(make_plan(args, 2, **plan), args, SIZES, secrets="x", reference_is_public=public)
    json.dumps(found, allow_nan=False)
    return found


def test_lists_are_read_strictly() -> None:
    args = arguments(
        sigma_per_layer="[0.1, 1e-3]",
        dp_sensitivity_per_layer_l2='[1, "2e-1"]',
        center_clip_C_per_layer="null",
        dp_rdp_orders="- 2\n- 3.5",
        center_clip_ref_model_paths="[a/b, c]",
        clip_update_norm_per_layer=[1.0, 2],
    )
    assert args.sigma_per_layer == [0.1, 1e-3]
    assert args.dp_sensitivity_per_layer_l2 == [1.0, 0.2]
    assert args.center_clip_C_per_layer is None
    assert args.orders == [2.0, 3.5]
    assert args.center_clip_ref_model_paths == ["a/b", "c"]
    assert args.clip_update_norm_per_layer == [1.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_per_layer": "0.1"}, "sigma_per_layer must be a list"),
        ({"sigma_per_layer": "[]"}, "must be a list"),
        ({"sigma_per_layer": "[0.1, x]"}, "must hold numbers, got 'x'"),
        ({"sigma_per_layer": "[true]"}, "must hold numbers"),
        ({"sigma_per_layer": "[-0.1]"}, "from 0.0"),
        ({"sigma_per_layer": "[.inf]"}, "finite"),
        ({"sigma_per_layer": "[0.1"}, "not a YAML or JSON list"),
        ({"dp_rdp_orders": "[1.0]"}, "above 1.0"),
        ({"clip_update_norm_per_layer": "[.nan]"}, "finite"),
        ({"kappa": -0.1}, "kappa must be finite"),
        ({"kappa": 0.1, "sigma_rms": 0.1}, "give one of sigma_rms and kappa"),
        ({"kappa": 0.1, "sigma_per_layer": "[0.1, 0.1]"}, "give one of kappa and sigma_per_layer"),
        ({"kappa": 0.1, "copies_m": 1}, "no zero-sum noise"),
        ({"alphas": "random"}, "unknown alphas 'random'; known: uniform, fixed"),
        ({"client_reference": "theta"}, "unknown client_reference 'theta'; known: copy, server"),
        ({"client_reference": "server", "lora": True}, "drop --lora"),
        ({"center_clip_ref_model_paths": "[1]"}, "list of names"),
        ({"copies_m": 0}, "copies_m"),
        ({"rounds_R": 0}, "rounds_R"),
        ({"alpha_min": 0.99}, "1 <= alpha_min <= alpha_max"),
        ({"alpha_min": 1.6}, "1 <= alpha_min <= alpha_max"),
        ({"alpha_max": math.inf}, "alpha_max"),
        ({"sigma": -1.0}, "sigma must be finite"),
        ({"sigma": math.nan}, "sigma must be finite"),
        ({"jitter_tau": math.inf}, "jitter_tau"),
        ({"theta_ref_beta": 1.1}, "theta_ref_beta"),
        ({"eta_srv": 0.0}, "eta_srv"),
        ({"local_max_steps": 0}, "local_max_steps"),
        ({"local_epochs": 0.0}, "local_epochs"),
        ({"dp_epsilon": 1.0}, "belong together"),
        ({"dp_delta": 1e-5}, "belong together"),
        ({"dp_epsilon": 1.0, "dp_delta": 1.0, "dp_sensitivity_total_l2": 1.0}, "dp_delta"),
        ({"dp_epsilon": 1.0, "dp_delta": 1e-5}, "needs a sensitivity"),
        ({"dp_accounting": "joint"}, "give dp_epsilon"),
        ({"dp_accounting": "zcdp"}, "unknown dp_accounting"),
        ({"dp_per_layer_allocation": "best"}, "unknown dp_per_layer_allocation"),
        ({"center_clip_C_per_layer": "[1]", "center_clip_ref_model_paths": "[a]"}, "give one of"),
        ({"copies_m": 1, "sigma": 0.1}, "no zero-sum noise"),
        ({"copies_m": 1, "sigma_per_layer": "[0, 0.1]"}, "no zero-sum noise"),
        ({"sigma": 0.1, "sigma_rms": 0.1}, "give one of sigma and sigma_rms"),
        ({"inner_handler": "Forget"}, "unknown inner method 'Forget'; known: GradAscent"),
        ({"accumulate_device": "nowhere"}, "accumulate_device"),
    ],
)
def test_contradictions_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        arguments(**settings)
    assert "\n" not in str(caught.value)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="train alone"):
        arguments()


@pytest.mark.parametrize(
    "name",
    ["center_clip_C_per_layer", "dp_sensitivity_per_layer_l2", "sigma_per_layer", "clip_update_norm_per_layer"],
)
def test_lists_of_the_wrong_length(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} has 3 entries, but the model has 2 layers"):
        make_plan(arguments(**{name: [1.0, 1.0, 1.0]}), 2)


def test_manual_noise_and_what_it_leaves_bare() -> None:
    found = told(arguments(sigma=0.1))
    assert {row["sigma"] for row in found["noise"]} == {0.1}
    assert found["published_bare"]["share"] == 0.0
    assert found["joint"]["epsilon"] is None
    assert "no sensitivity" in found["joint"]["why"]
    found = told(arguments(sigma_per_layer=[0.1, 0.2]))
    assert [row["sigma"] for row in found["noise"]] == [0.1, 0.2, 0.0]
    assert found["published_bare"] == {"parameters": ["embed"], "share": 0.1}
    assert make_plan(arguments(sigma_per_layer=[0.1, 0.2], sigma=0.3), 2).sigmas == {0: 0.1, 1: 0.2, None: 0.3}
    assert make_plan(arguments(sigma_rms=0.01), 2, weights_rms=2.0).sigmas == {0: 0.02, 1: 0.02, None: 0.02}
    assert told(arguments(jitter_tau=0.1))["published_bare"]["share"] == 0.0


def test_paper_calibration_per_layer() -> None:
    args = arguments(dp_epsilon=4.0, dp_delta=1e-5, dp_sensitivity_per_layer_l2=[1.0, 3.0], rounds_R=2)
    plan = make_plan(args, 2)
    expected = paper_sigmas(4.0, 1e-5, [1.0, 3.0], 2, 4, 1.0, 1.5)
    assert [plan.sigmas[0], plan.sigmas[1]] == expected
    assert plan.sigmas[None] == 0.0
    assert plan.thresholds == {0: 0.5, 1: 1.5}
    found = told(args)
    assert found["paper"]["epsilon"] == pytest.approx(4.0)
    assert found["paper"]["epsilon"] <= 4.0
    assert found["joint"]["epsilon"] is None
    assert "the centre itself" in found["joint"]["why"]
    assert found["published_bare"]["parameters"] == ["embed"]
    assert found["bound_void_for"] == {"parameters": ["embed"], "share": 0.1}
    assert found["sensitivities"]["enforced"] is False
    assert told(args, public=True)["sensitivities"]["enforced"] is True
    # The mean over uniform alphas says nothing of fixed ones, which add up to more.
    own = {"dp_use_worstcase_alpha": False, "dp_epsilon": 4.0, "dp_delta": 1e-5, "alphas": "fixed"}
    fixed = arguments(**own, dp_sensitivity_per_layer_l2=[1.0, 3.0], rounds_R=2)
    assert [make_plan(fixed, 2).sigmas[layer] for layer in (0, 1)] == expected
    # A global threshold makes the rest one more group.
    covered = arguments(
        dp_epsilon=4.0, dp_delta=1e-5, dp_sensitivity_per_layer_l2=[1.0, 3.0], center_clip_C_global=0.25
    )
    plan = make_plan(covered, 2)
    assert list(plan.sigmas.values()) == paper_sigmas(4.0, 1e-5, [1.0, 3.0, 0.5], 1, 4, 1.0, 1.5)
    assert told(covered)["bound_void_for"]["share"] == 0.0
    assert told(covered, public=True)["private"] is False


def test_private_is_claimed_only_where_the_bound_holds_for_everything() -> None:
    target = {
        "dp_epsilon": 4.0,
        "dp_delta": 1e-5,
        "dp_accounting": "joint",
        "dp_sensitivity_per_layer_l2": [1.0, 3.0],
    }
    covered = arguments(**target, center_clip_C_global=0.25)
    assert told(covered, public=True)["private"] is True
    assert told(covered)["private"] is False
    assert told(arguments(**target), public=True)["private"] is False
    unclipped = arguments(**target, center_clip_C_global=0.25, server_center_clipping=False)
    assert told(unclipped, public=True)["private"] is False
    seeded = report(
        make_plan(covered, 2),
        covered,
        SIZES,
        secrets="reproducible secrets, not private",
        reference_is_public=True,
    )
    assert seeded["private"] is False


def test_a_total_is_enforced_only_where_the_thresholds_keep_it() -> None:
    target: dict[str, Any] = {"dp_epsilon": 4.0, "dp_delta": 1e-5, "dp_accounting": "joint"}
    total = {**target, "dp_sensitivity_total_l2": 2.0, "per_layer_noise": False}
    cases = [
        # Split over two layers; embeddings are published unclipped, and the total is said of them, too.
        (total, False),
        # Clipped, but the parts together allow more than the total.
        ({**total, "center_clip_C_global": 1.0}, False),
        ({**target, "dp_sensitivity_total_l2": 2.0, "center_clip_C_global": 1.0}, True),
        ({"dp_sensitivity_total_l2": 2.0, "jitter_tau": 1.0, "per_layer_noise": False}, False),
        ({**target, "dp_sensitivity_per_layer_l2": [1.0, 3.0], "per_layer_noise": False}, True),
    ]
    for settings, enforced in cases:
        found = told(arguments(**settings), public=True)
        assert found["sensitivities"]["enforced"] is enforced, settings
        assert found["private"] is (enforced and found["bound_void_for"]["share"] == 0.0)
        assert ("assumption" in found["sensitivities"]["why"]) is not enforced
    # Layers that cannot be told: a threshold above the stated total.
    args = arguments(**total, center_clip_C_global=50.0)
    plan = make_plan(args, 0)
    sizes: dict[str, tuple[int | None, int]] = {"w": (None, 5)}
    assert report(plan, args, sizes, secrets="x", reference_is_public=True)["private"] is False
    # Without anything outside the layers their thresholds are the total's.
    assert make_plan(arguments(**total), 2, outside=False).is_clipped


def test_a_sigma_read_off_the_weights_is_not_private() -> None:
    settings: dict[str, Any] = {
        "dp_epsilon": 4.0,
        "dp_delta": 1e-5,
        "dp_accounting": "joint",
        "dp_sensitivity_per_layer_l2": [1.0, 3.0],
        "center_clip_C_global": 0.25,
    }
    assert told(arguments(**settings, sigma=0.1), public=True)["private"] is True
    assert told(arguments(**settings, sigma_rms=0.1), public=True, weights_rms=1.0)["private"] is False


def test_total_is_split_and_single_sigma_uses_it_whole() -> None:
    target = {"dp_epsilon": 4.0, "dp_delta": 1e-5, "dp_sensitivity_total_l2": 2.0}
    plan = make_plan(arguments(**target), 2)
    assert plan.sigmas[0] == plan.sigmas[1]
    assert plan.terms[0][0] == pytest.approx(math.sqrt(2.0))
    assert plan.thresholds == {0: pytest.approx(math.sqrt(0.5)), 1: pytest.approx(math.sqrt(0.5))}
    args = arguments(**target, per_layer_noise=False)
    single = make_plan(args, 2)
    (sigma,) = paper_sigmas(4.0, 1e-5, [2.0], 1, 4, 1.0, 1.5)
    assert set(single.sigmas.values()) == {sigma}
    assert told(args)["bound_void_for"]["share"] == 0.0
    # From a list, what lies outside the layers has noise but no sensitivity.
    args = arguments(dp_epsilon=4.0, dp_delta=1e-5, dp_sensitivity_per_layer_l2=[1.2, 1.6], per_layer_noise=False)
    assert make_plan(args, 2).sigmas[None] == pytest.approx(sigma)
    assert told(args)["bound_void_for"]["parameters"] == ["embed"]


@pytest.mark.parametrize(
    "settings", [{"dp_sensitivity_total_l2": 2.0}, {"dp_sensitivity_per_layer_l2": [1.2, 1.6]}]
)
def test_unknown_layers_fall_back_to_one_sigma_with_a_warning(settings: dict[str, Any]) -> None:
    plan = make_plan(arguments(dp_epsilon=4.0, dp_delta=1e-5, **settings), 0)
    (sigma,) = paper_sigmas(4.0, 1e-5, [2.0], 1, 4, 1.0, 1.5)
    assert plan.sigmas == {None: pytest.approx(sigma)}
    assert any("one sigma" in warning for warning in plan.warnings)


def test_infeasible_budget_keeps_the_manual_sigma_with_a_warning() -> None:
    args = arguments(
        dp_epsilon=0.01, dp_delta=1e-5, dp_sensitivity_per_layer_l2=[1.0, 1.0], sigma=0.3, dp_rdp_orders=[2.0]
    )
    plan = make_plan(args, 2)
    assert set(plan.sigmas.values()) == {0.3}
    assert any("manual sigma stays" in warning for warning in plan.warnings)
    assert told(args)["paper"]["epsilon"] > 0.01


def test_quantile_policy_grows_with_the_rounds() -> None:
    args = arguments(center_clip_ref_model_paths=["a"], rounds_R=3, sigma=0.1, dp_sensitivity_total_l2=9.0)
    plan = make_plan(args, 2, reference_norms=[[1.0, 2.0]])
    assert plan.thresholds == {0: 1.25, 1: 2.5}
    assert plan.thresholds_of_round(2) == {0: pytest.approx(1.25 * 1.69), 1: pytest.approx(2.5 * 1.69)}
    # Both accountings add squares over rounds, so the root of their mean square stands for all rounds.
    growth = math.sqrt((1 + 1.3**2 + 1.3**4) / 3)
    assert [width for width, _ in plan.terms] == [pytest.approx(2.5 * growth), pytest.approx(5.0 * growth)]
    assert any("quantile policy sets the sensitivities" in warning for warning in plan.warnings)
    assert plan.is_clipped


def test_thresholds_and_stated_sensitivities_must_agree() -> None:
    with pytest.raises(UserError, match="below 2 C"):
        make_plan(arguments(center_clip_C_per_layer=[1.0, 1.0], dp_sensitivity_per_layer_l2=[1.9, 2.0]), 2)
    plan = make_plan(arguments(center_clip_C_per_layer=[1.0, 1.0], dp_sensitivity_per_layer_l2=[2.5, 2.0]), 2)
    assert [width for width, _ in plan.terms] == [2.5, 2.0]
    with pytest.raises(UserError, match="server_center_clipping needs"):
        make_plan(arguments(server_center_clipping=True), 2)
    off = arguments(server_center_clipping=False, center_clip_C_per_layer=[1.0, 1.0])
    assert make_plan(off, 2).thresholds == {}
    assert "assumption" in told(off, public=True)["sensitivities"]["why"]


def test_joint_calibration_meets_the_target_by_jitter() -> None:
    target = {
        "dp_epsilon": 4.0,
        "dp_delta": 1e-5,
        "dp_sensitivity_per_layer_l2": [1.0, 3.0],
        "dp_accounting": "joint",
        "rounds_R": 2,
    }
    plan = make_plan(arguments(**target), 2)
    assert plan.jitter == joint_jitter(4.0, 1e-5, [1.0, 3.0], 2, 4)
    assert set(plan.sigmas.values()) == {0.0}
    found = told(arguments(**target, sigma=0.2))
    assert found["joint"]["epsilon"] == pytest.approx(4.0)
    assert found["joint"]["epsilon"] == joint_epsilon([1.0, 3.0], [0.2, 0.2], [1.0] * 4, plan.jitter, 2, 1e-5)
    assert found["paper"]["epsilon"] == paper_epsilon([1.0, 3.0], [0.2, 0.2], 2, 4, 1.0, 1.5, 1e-5)
    # A smaller jitter is raised, with a warning; a larger one stays.
    raised = make_plan(arguments(**target, jitter_tau=1e-3), 2)
    assert raised.jitter == plan.jitter
    assert any("is below what the target needs" in warning for warning in raised.warnings)
    assert make_plan(arguments(**target, jitter_tau=1e3), 2).jitter == 1e3
    assert make_plan(arguments(**target, copies_m=1), 2).jitter == pytest.approx(plan.jitter / 2)


def test_one_copy_with_calibrated_noise_is_refused() -> None:
    args = arguments(copies_m=1, dp_epsilon=4.0, dp_delta=1e-5, dp_sensitivity_total_l2=1.0)
    with pytest.raises(UserError, match="no zero-sum noise"):
        make_plan(args, 2)


def test_the_guide_s_names_are_all_there() -> None:
    names = (
        "copies_m rounds_R alpha_min alpha_max eta_srv theta_ref_beta server_center_clipping "
        "center_clip_C_per_layer center_clip_C_global jitter_tau center_clip_quantile_q "
        "center_clip_quantile_kappa center_clip_round_gamma center_clip_ref_model_paths per_layer_noise "
        "dp_epsilon dp_delta dp_rdp_orders dp_per_layer_allocation dp_sensitivity_per_layer_l2 "
        "dp_sensitivity_total_l2 dp_use_worstcase_alpha sigma sigma_per_layer inner_handler local_epochs "
        "local_max_steps clip_update_norm clip_update_norm_per_layer use_orthogonal_reparam "
    )
    args = arguments()
    assert all(hasattr(args, name) for name in names.split())
    assert args.center_clip_quantile_q == 0.95
    assert args.center_clip_quantile_kappa == 1.25
    assert args.center_clip_round_gamma == 1.3
