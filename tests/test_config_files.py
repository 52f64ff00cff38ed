"""Run files: defaults, overrides, messages, fingerprints, the page of options."""

from pathlib import Path

import pytest

from e2gan_cluster.config import RunConfig
from e2gan_cluster.config_io import config_table, explain_changes, fingerprint, load_config, to_yaml
from e2gan_cluster.errors import EXIT_BAD_INPUT, ConfigError

REPO = Path(__file__).parent.parent


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def message(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == EXIT_BAD_INPUT
    return caught.value.message


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_config(write(tmp_path, "")) == load_config(None) == RunConfig()


def test_a_partly_given_section_keeps_the_defaults_of_its_place(tmp_path):
    config = load_config(write(tmp_path, "search:\n  train:\n    images: 10\n"))
    assert config.search.train.images == 10
    assert config.search.train.lr == RunConfig().search.train.lr != RunConfig().base.train.lr


def test_overrides_are_yaml_and_win_over_the_file(tmp_path):
    path = write(tmp_path, "seed: 1\npairs: {resolution: 64}\n")
    overrides = ["pairs.resolution=96", "concepts.new=[a, b]", "search.train.lr=2e-4", "teacher.compile=true"]
    config = load_config(path, overrides)
    assert (config.seed, config.pairs.resolution, config.concepts.new) == (1, 96, ["a", "b"])
    assert config.search.train.lr == 2e-4
    assert config.teacher.compile is True


def test_an_empty_override_means_empty(tmp_path):
    path = write(tmp_path, "photos: {limit: 3}\n")
    assert load_config(path, ["photos.limit="]).photos.limit is None


def test_an_unknown_key_names_file_line_and_nearest_key(tmp_path):
    path = write(tmp_path, "seed: 1\npairs:\n  resolutoin: 64\n")
    assert message(path) == f"{path}:3: pairs.resolutoin: unknown option; did you mean `resolution`?"


def test_a_key_in_the_wrong_section_is_pointed_to_the_right_one(tmp_path):
    assert "did you mean `pairs.filters.min_std`?" in message(write(tmp_path, "pairs: {min_std: 0.1}\n"))


def test_every_wrong_option_is_listed_with_its_own_line(tmp_path):
    path = write(tmp_path, "seed: -1\nteacher:\n  device: gpu\nphotos:\n  limit: many\n")
    lines = message(path).splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [f"{path}:1", f"{path}:3", f"{path}:5"]
    assert f"{path}:3: teacher.device: should be 'auto', 'cpu', 'cuda' or 'mps', not gpu" in lines


def test_a_cross_check_names_the_options_to_change_and_their_line(tmp_path):
    path = write(tmp_path, "seed: 1\nsearch:\n  data_sizes: [50, 5000]\n")
    text = message(path)
    assert text.startswith(f"{path}:3: ")
    assert "raise pairs.pairs_per_concept or lower search.data_sizes" in text


def test_a_wrong_override_is_named_as_such():
    assert message(None, "pair.resolution=64").startswith(
        "--set pair.resolution: no section `pair`; did you mean `pairs`?"
    )
    assert "is an option, not a section" in message(None, "seed.x=1")
    assert "not of the form key.path=value" in message(None, "seed")
    assert message(None, "pairs.resolution=63").startswith("--set pairs.resolution: ")


@pytest.mark.parametrize("text", ["- a\n", "just text\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    assert "a config is a mapping" in message(write(tmp_path, text))


def test_a_missing_file_says_so(tmp_path):
    assert "no such file" in message(tmp_path / "nothing.yaml")
    assert "cannot be read" in message(tmp_path)


@pytest.mark.parametrize("option", ["base.train.lr=inf", "base.train.lr=nan", "search.data_sizes=[]", "name=../x"])
def test_values_that_would_break_a_run_later_are_refused_now(option):
    assert message(None, option).startswith(f"--set {option.partition('=')[0]}: ")


@pytest.mark.parametrize(
    "option", ["storage=s3://key:hunter22@bucket/x", "tracking=postgresql://me:hunter22@db/mlflow"]
)
def test_a_password_in_an_address_is_refused_and_not_repeated(option):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [option])
    assert "password" in str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_the_resolved_config_reads_back_equal(tmp_path):
    tricky = [
        'publish.licence="no"',
        'teacher.variant="1e3"',
        'teacher.revision="0123"',
        'teacher.negative_prompt="a: #b"',
    ]
    config = load_config(None, tricky)
    assert load_config(write(tmp_path, to_yaml(config))) == config


def test_the_fingerprint_follows_values_and_not_their_spelling(tmp_path):
    spelled = load_config(write(tmp_path, "pairs:\n  resolution: 128\nseed: 0\n"))
    assert fingerprint(spelled) == fingerprint(RunConfig())
    assert fingerprint(load_config(None, ["seed=1"])) != fingerprint(RunConfig())
    assert fingerprint({"b": 1, "a": [1.0, "ü"]}) == fingerprint({"a": [1.0, "ü"], "b": 1})


def test_a_changed_config_is_explained_field_by_field():
    old, new = RunConfig().model_dump(), load_config(None, ["pairs.resolution=64", "teacher.steps=4"]).model_dump()
    assert explain_changes(old, new) == ["pairs.resolution: 128 -> 64", "teacher.steps: empty -> 4"]
    del new["seed"]
    assert "seed: 0 -> (not there)" in explain_changes(old, new)
    assert explain_changes(old, old) == []


def test_every_shipped_config_loads_and_has_a_storage_and_a_name_of_its_own():
    configs = {path.name: load_config(path) for path in (REPO / "configs").glob("*.yaml")}
    assert {"demo.yaml", "paper.yaml", "s3.yaml"} <= set(configs)
    for field in ("name", "storage"):
        assert len({getattr(config, field) for config in configs.values()}) == len(configs), field
    assert configs["s3.yaml"].storage.startswith("s3://")


def test_the_page_of_options_is_current():
    page = (REPO / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == config_table(), "run: e2gan config docs --output docs/config.md"


def test_every_option_is_described():
    rows = [line for line in config_table().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert all(row.rsplit("|", 2)[1].strip() for row in rows)
