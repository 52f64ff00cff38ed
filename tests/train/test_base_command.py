from typer.testing import CliRunner

from e2gan_cluster.cli import app
from e2gan_cluster.config_io import to_yaml
from tests.tiny_base import with_pairs


def test_base_command_trains_publishes_and_then_finds_it_done(tmp_path):
    config, _ = with_pairs(tmp_path, images=8)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    command = ["base", "--config", str(file), "--local", "--log-format", "plain", "--set", "tracking=none"]
    first, second = (CliRunner().invoke(app, command) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    line = next(line for line in first.output.splitlines() if line.startswith("base "))
    assert line in second.output.splitlines()
    assert (tmp_path / "store" / "base" / line.split()[1] / "generator.safetensors").exists()


def test_profile_command_prints_ours_beside_pix2pix():
    result = CliRunner().invoke(app, ["profile", "--set", "nets.width=8", "--resolution", "32", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    assert "11.38 M" in result.output
    assert "transformer" in result.output
