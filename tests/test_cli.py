"""The command line: quick to start, one table of contents, an example in every help, no tracebacks for user errors."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from e2gan_cluster import cli
from e2gan_cluster.errors import EXIT_BAD_INPUT, EXIT_SOME_FAILED, UserError

HEAVY = ["torch", "ray", "mlflow", "boto3", "diffusers", "transformers", "onnxruntime", "pyarrow", "sklearn", "PIL"]
WIDE = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "e2gan_cluster.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=WIDE, **options)


def leaf_commands() -> Iterator[tuple[str, object]]:
    for name in cli.COMMANDS:
        command = cli.load_command(name)
        below = getattr(command, "commands", None)
        if below:
            yield from ((f"{name} {sub}", leaf) for sub, leaf in below.items())
        else:
            yield name, command


def test_help_is_a_table_of_contents_and_imports_nothing_heavy():
    program = (
        "import sys, time; began_s = time.perf_counter(); sys.argv = ['e2gan', '--help']\n"
        "from e2gan_cluster.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"print('LOADED', [m for m in {HEAVY} if m in sys.modules])\n"
        "print('SECONDS', time.perf_counter() - began_s)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=WIDE)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
    # 0.2 s on an idle machine; room for a busy one.
    assert float(done.stdout.rpartition("SECONDS")[2]) < 5
    places = [done.stdout.index(heading) for heading in (cli.START, cli.CLUSTER)]
    assert places == sorted(places)
    for name, entry in cli.COMMANDS.items():
        assert re.search(rf"\b{name}\b.*{re.escape(entry.help[:20])}", done.stdout), name


def test_the_light_core_imports_nothing_heavy():
    modules = ["config_io", "concepts", "errors", "progress", "cli", "storage", "doctor"]
    program = f"import sys\nfor m in {modules}: __import__('e2gan_cluster.' + m)\n"
    program += f"print([m for m in {[*HEAVY[:4], 'diffusers', 'transformers']} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_command_has_an_example_and_documented_options():
    for name, command in leaf_commands():
        text = getattr(command, "help", "") or ""
        assert f"e2gan {name}" in text, f"`e2gan {name} --help` has no example"
        for parameter in getattr(command, "params", ()):
            assert getattr(parameter, "help", None), f"e2gan {name}: {parameter.name} has no help"


def test_every_command_of_the_table_answers_help():
    runner = CliRunner()
    for name, _ in leaf_commands():
        result = runner.invoke(cli.app, [*name.split(), "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0, (name, result.output)


@pytest.mark.parametrize("arguments", [["nonsense"], ["config", "show", "--nonsense"], ["doctor"]])
def test_wrong_usage_is_exit_code_2_with_a_message(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_a_mistyped_command_gets_the_nearest():
    assert "did you mean `config`" in run("confg").stderr


def test_a_user_error_is_printed_with_its_fix_and_exit_code(monkeypatch):
    def failing() -> None:
        raise UserError("it broke at x.yaml:3", "mend it")

    class Odd(UserError):
        exit_code = EXIT_SOME_FAILED

    def odd() -> None:
        raise Odd("two of three failed with topsecretvalue")

    monkeypatch.setenv("MY_API_TOKEN", "topsecretvalue")
    monkeypatch.setattr(cli, "load_command", lambda name: _single(failing if name == "doctor" else odd))
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert (result.exit_code, result.stderr) == (1, "error: it broke at x.yaml:3\n  fix: mend it\n")
    result = CliRunner().invoke(cli.app, ["config"])
    assert (result.exit_code, result.stderr) == (3, "error: two of three failed with ***\n")


def _single(function):
    app = typer.Typer()
    app.command()(function)
    return typer.main.get_command(app)


def test_config_show_prints_yaml_that_can_be_used_again(tmp_path):
    shown = run("config", "show", "--set", "seed=7")
    assert shown.returncode == 0
    (tmp_path / "run.yaml").write_text(shown.stdout)
    again = run("config", "show", "--config", str(tmp_path / "run.yaml"))
    assert again.stdout == shown.stdout
    assert "\nseed: 7\n" in shown.stdout
    assert shown.stdout.startswith("# fingerprint: ")


def test_a_wrong_config_is_exit_code_2(tmp_path):
    (tmp_path / "run.yaml").write_text("sede: 7\n")
    done = run("config", "show", "--config", str(tmp_path / "run.yaml"))
    assert done.returncode == EXIT_BAD_INPUT
    assert f"{tmp_path}/run.yaml:1: sede: unknown option; did you mean `seed`?" in done.stderr


def test_concepts_lists_a_catalogue(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "- {name: oil, prompt: make it oil, tags: [look]}\n- {name: ink, prompt: ink it}\n"
    )
    assert run("concepts", str(tmp_path / "c.yaml")).stdout == "oil  make it oil  [look]\nink  ink it\n"
    assert run("concepts", str(tmp_path / "c.yaml"), "--tag", "look").stdout == "oil  make it oil  [look]\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_unwinds_and_sets_the_usual_exit_code(tmp_path, number, code):
    program = (
        "import sys, time, pathlib\n"
        "from e2gan_cluster import cli\n"
        "import typer\n"
        "def slow():\n"
        "    try:\n"
        "        pathlib.Path('started').touch()\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        pathlib.Path('unwound').touch()\n"
        "app = typer.Typer(); app.command()(slow)\n"
        "cli.load_command = lambda name: typer.main.get_command(app)\n"
        "sys.argv = ['e2gan', 'doctor']\n"
        "cli.main()\n"
    )
    # A test run started in the background ignores Ctrl-C, and children inherit that.
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == code
    assert (tmp_path / "unwound").exists()


@pytest.mark.parametrize(("place", "code"), [("/dev/full", 1), ("/nowhere/at/all/config.md", 2), ("/", 2)])
def test_a_full_disk_or_a_wrong_place_is_a_message_and_no_traceback(place, code):
    done = run("config", "docs", "--output", place)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_version_is_printed():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", run("--version").stdout)
