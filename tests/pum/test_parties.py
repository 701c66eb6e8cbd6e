"""Two parties over folders: what they write, that it's what one process gives."""

from __future__ import annotations

from pathlib import Path

import parties as p
import pytest

from pum.publish import main as publish
from src.utils import UserError


@pytest.mark.parametrize("rounds", [1, 2])
def test_two_parties_give_what_one_process_gives(rounds: int, tmp_path: Path) -> None:
    two = p.parties(tmp_path, rounds=rounds)
    merged = two.run()
    assert p.same(merged, two.one_process(tmp_path / "one"))


def test_so_they_do_with_noise_that_follows_theta_and_known_alphas(tmp_path: Path) -> None:
    servers = (
        "--copies_m 3 --secret_seed 1 --kappa 0.5 --alphas fixed --local_epochs 1 --clip_update_norm_per_layer"
    )
    two = p.parties(tmp_path, servers=f"{servers} [0.01,-1] --use_orthogonal_reparam True", rounds=2)
    merged = two.run()
    assert p.same(merged, two.one_process(tmp_path / "one"))


def test_an_offer_does_not_hold_the_servers_model(tmp_path: Path) -> None:
    two = p.parties(tmp_path, servers=f"{p.SERVERS} --client_reference server")
    with pytest.raises(UserError, match="an offer holds copies alone"):
        publish(two.first())
    assert not two.private.exists()
