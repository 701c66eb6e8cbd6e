"""setup.sh and the authors' DP-AggZO repository, on a copy of the project with a repository of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


@pytest.fixture
def project(tmp_path):
    """A folder in which everything is installed, with setup.sh cloning from a local repository."""
    origin = tmp_path / "origin"
    subprocess.run([*GIT, "init", "--quiet", str(origin)], check=True)
    (origin / "README").write_text("code\n")
    subprocess.run([*GIT, "-C", str(origin), "add", "."], check=True)
    subprocess.run([*GIT, "-C", str(origin), "commit", "--quiet", "-m", "one"], check=True)
    command = [*GIT, "-C", str(origin), "rev-parse", "HEAD"]
    head = subprocess.run(command, check=True, capture_output=True, text=True)
    folder = tmp_path / "project"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / "baselines").mkdir()
    shutil.copy(ROOT / "requirements.txt", folder)
    text = (ROOT / "setup.sh").read_text()
    embedded = re.search(r'^embedded="(.*?)"', text, re.M)[1]
    (folder / ".venv/installed.txt").write_text((ROOT / "requirements.txt").read_text() + embedded + "\n")
    python = folder / ".venv/bin/python"
    python.write_text("#!/bin/sh\nexit 9\n")
    python.chmod(0o755)
    assert "baseline_commit=99f64026cf744be804da3dedfe025a6e199df82f\n" in text
    text = re.sub(r"(?m)^baseline_url=.*", f"baseline_url={origin.as_uri()}", text)
    text = re.sub(r"(?m)^baseline_commit=.*", f"baseline_commit={head.stdout.strip()}", text)
    (folder / "setup.sh").write_text(text)
    return folder


def setup(folder, *arguments):
    return subprocess.run(["bash", "setup.sh", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def unreachable(folder):
    script = folder / "setup.sh"
    script.write_text(re.sub(r"(?m)^baseline_url=.*", "baseline_url=file:///no/such", script.read_text()))


@pytest.mark.parametrize("arguments", [[], ["--baselines"]])
def test_the_pinned_commit_is_cloned_once(arguments, project):
    for _ in range(2):
        result = setup(project, *arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert (project / "baselines/dp-aggzo/README").read_text() == "code\n"
        unreachable(project)  # the second time nothing is asked for


def test_without_network_plain_setup_says_so_once_and_goes_on(project):
    unreachable(project)
    first, second = setup(project), setup(project)
    assert first.returncode == second.returncode == 0
    assert first.stderr.startswith("note: file:///no/such could not be cloned")
    assert first.stderr.count("\n") == 1
    assert second.stderr == ""
    assert [path.name for path in (project / "baselines").iterdir()] == []


def test_without_network_asking_for_it_fails(project):
    unreachable(project)
    setup(project)
    result = setup(project, "--baselines")
    assert result.returncode == 2
    assert result.stderr.startswith("error: file:///no/such could not be cloned at commit")
    assert result.stderr.count("\n") == 1


def test_another_folder_in_its_place_is_left_alone(project):
    (project / "baselines/dp-aggzo").mkdir()
    (project / "baselines/dp-aggzo/mine").write_text("x")
    result = setup(project, "--baselines")
    assert result.returncode == 2
    assert "move it away" in result.stderr
    assert (project / "baselines/dp-aggzo/mine").read_text() == "x"


def test_setup_refuses_what_it_does_not_know(project):
    result = setup(project, "--what")
    assert result.returncode == 2
    assert "--what" in result.stderr
