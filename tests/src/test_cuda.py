"""What a GPU computes beside what a CPU does. Each test runs on a CPU too: so it is known to work."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from builders import make_model, make_tokenizer

from paczo.pac_trainer import PACArguments, PACTrainer
from src.engine.derivatives import exact_derivatives
from src.lora import LoraSettings, add_lora
from src.objectives import CandidateScoring, GenerationF1
from src.transcript import replay
from src.zo.directions import ParameterSpace, StepRecord
from src.zo.sources import CentralDifferences

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
PROMPTS = ["a very good film It was", "the plot so dull and cold It was", "bad actor It was", "warm It was"] * 3


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, CUDA])])
def device(request):
    return torch.device(request.param)


def model_on(device, dtype=torch.float32, track="lora", kind="opt"):
    torch.manual_seed(0)
    model = make_model(kind).to(device=device, dtype=dtype).eval()
    if track == "ft":
        return model.requires_grad_(True)
    model = add_lora(model, LoraSettings(r=4, alpha=8, dtype="float32"))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def scoring(model):
    labels = [index % 2 for index in range(len(PROMPTS))]
    return CandidateScoring(model, make_tokenizer(), PROMPTS, [["terrible", "great"]] * len(PROMPTS), labels)


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-4), (torch.float16, 0.03), (torch.bfloat16, 0.1)]
)
def test_losses_are_those_of_a_cpu_in_float32(device, dtype, within):
    wanted = scoring(model_on("cpu")).losses()
    found = scoring(model_on(device, dtype)).losses()
    assert found.cpu().numpy() == pytest.approx(wanted.numpy(), abs=within)


@pytest.mark.parametrize("track", ["lora", "ft"])
def test_exact_derivatives_are_central_differences(device, track):
    """On a smooth model: a kink between the two probes is no error of either."""
    objective = scoring(model_on(device, track=track, kind="llama"))
    space = ParameterSpace(objective.model)
    exact = exact_derivatives(objective, space, (3, 4, 5))[0].cpu().numpy()
    central = np.asarray(CentralDifferences(space, objective, 1e-3)((3, 4, 5))[0])
    assert exact == pytest.approx(central, abs=0.02 * float(np.abs(exact).max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_probe_leaves_the_weights_as_they_were_and_a_step_is_the_same_twice(device, dtype):
    model = model_on(device, dtype, track="ft")
    before = copy.deepcopy(model.state_dict())
    objective, space = scoring(model), ParameterSpace(model)
    space.two_point(7, 1e-2, objective.losses)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ended = []
    for _ in range(2):
        model.load_state_dict(before)
        space.apply(StepRecord(0, (7, 8), (1.0, -1.0), 1e-2))
        ended.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())
    assert not all(torch.equal(value, before[name]) for name, value in ended[0].items())


def test_answers_are_those_of_a_cpu(device):
    answers = [["great"]] * len(PROMPTS)
    texts = [
        GenerationF1(model_on(place), make_tokenizer(), PROMPTS, answers, 8).texts() for place in ("cpu", device)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("derivative", ["central", "exact"])
def test_a_private_run_replays_bit_for_bit(device, derivative, tmp_path):
    args = PACArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        learning_rate=1e-2,
        pac_m=8,
        pac_mi=1.0,
        pac_k=2,
        pac_secret_seed=1,
        zo_derivative=derivative,
        use_cpu=device.type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    objective = scoring(model_on(device))
    PACTrainer(objective.model, args, objective).train()
    again = replay(model_on(device), tmp_path / "transcript.jsonl")
    trained = objective.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in again.state_dict().items())
