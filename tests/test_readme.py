"""The README's commands are run, or at least understood by the program they name."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup

from e2gan_cluster.cli import COMMANDS, load_command
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.registry import list_adapters
from tests import chain_setup

README = (chain_setup.ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent

# `make demo` as a user types it, but with little to learn.
SMALL = {
    "photos.limit": 12,
    "concepts.base": "[sepia, golden-hour]",
    "concepts.new": "[snowy-winter]",
    "pairs.resolution": 32,
    "pairs.max_workers": 1,
    "pairs.pairs_per_concept": 8,
    "base.train.images": 32,
    "base.train.eval_images": 32,
    "search.train.images": 16,
    "search.probe_images": 8,
    "search.probe_concepts": 1,
    "search.data_sizes": "[4, 8]",
    "search.num_workers": 1,
}


def code_blocks() -> list[str]:
    return re.findall(r"```\n(.*?)```", README, re.S)


def e2gan_lines() -> list[list[str]]:
    """Every line of a code block that calls ``e2gan``, as words."""
    lines = [line for block in code_blocks() for line in block.splitlines()]
    calls = [line for line in lines if re.match(r"(\.venv/bin/)?e2gan ", line)]
    # In the list of commands, two spaces or more separate a command from what it does.
    return [shlex.split(re.split(r"\s{2,}#|\s{3,}(?![\s-])", line)[0]) for line in calls]


def test_every_e2gan_command_and_option_of_the_readme_exists() -> None:
    calls = e2gan_lines()
    assert len(calls) >= 12
    for words in calls:
        assert words[1] in COMMANDS, words
        command = load_command(words[1])
        if isinstance(command, TyperGroup) and len(words) > 2 and not words[2].startswith("-"):
            command = command.commands[words[2]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, words


def test_files_and_pages_the_readme_names_are_there() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    named = re.findall(r"(?:configs|jobs|docs)/[\w./-]+\.(?:yaml|py|md)", README)
    assert linked
    missing = [name for name in {*linked, *named} if not (chain_setup.ROOT / name).exists()]
    assert missing == []


@pytest.mark.timeout(900)
def test_make_demo_runs_the_main_job_and_says_what_next(tmp_path: Path) -> None:
    settings = {**SMALL, "storage": tmp_path / "demo"}
    arguments = " ".join(f"--set '{key}={value}'" for key, value in settings.items())
    assert "make demo" in README.split("\n## ")[0]
    done = subprocess.run(
        ["make", "demo", f"DEMO_ARGS={arguments}", f"VENV={BIN.parent}"],
        cwd=chain_setup.ROOT, env=chain_setup.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (adapter,) = list_adapters(open_store(tmp_path / "demo"))
    assert adapter.concept == "snowy-winter"
    for name in ("report.html", "overview.png"):
        assert f"{tmp_path / 'demo'}/{name}" in done.stdout
        assert (tmp_path / "demo" / name).stat().st_size > 1000
    _follow_what_it_says_next(done.stdout, tmp_path, settings)


def _follow_what_it_says_next(said: str, folder: Path, settings: dict[str, object]) -> None:
    """Run the commands that the demo ends with; those that read the run file need the same settings."""
    following = [shlex.split(line) for line in said.split("next:")[1].splitlines() if line.strip().startswith("e2gan")]
    assert {words[1] for words in following} >= {"status", "compare", "pull", "edit"}
    photo = sorted((chain_setup.ROOT / "e2gan_cluster/assets/photos").glob("*.jpg"))[0]
    for words in following:
        words[0] = str(BIN / "e2gan")
        words = [{"photo.jpg": str(photo)}.get(word, word) for word in words]
        if "--config" in words:
            words += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
            words[words.index("--config") + 1] = str(chain_setup.ROOT / words[words.index("--config") + 1])
        done = subprocess.run(
            words, cwd=folder, env=chain_setup.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stdout + done.stderr)
    assert (folder / "out.png").exists()
    assert (folder / "build/effects/e2gan.lock").exists()
