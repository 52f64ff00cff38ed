"""F35, F36: hostile concept names, prompts and YAML are errors with file and line, and cost nothing."""

import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from e2gan_cluster.concepts import load_catalogue
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import ConfigError, InputError, UserError
from e2gan_cluster.names import NAME, check_name
from e2gan_cluster.storage import keys
from e2gan_cluster.yaml_io import dump_yaml, parse_yaml

HOSTILE_NAMES = [
    "../etc", "/abs", "a/b", "C:\\x", "a\\b", "s3://x", "%2e%2e", ".", "..", "～", "．．", "ｏil", "éa",
    "oil\n", "\noil", "oil\0", "\u200foil", "oil\u202e", "a" * 64, "", " ", "-oil", "oil-",
    "oil painting", "oil_painting", "Oil", "OIL", "oil.png", "~", "a;rm -rf x", "$(id)", "=1+1", "con:",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_hostile_name_is_refused_with_its_line_in_a_catalogue_and_in_every_key(tmp_path, name):
    path = tmp_path / "c.yaml"
    path.write_text("- {name: fine, prompt: x}\n" + yaml.safe_dump([{"prompt": "x", "name": name}]), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_catalogue(str(path))
    assert caught.value.message.startswith((f"{path}:2: ", f"{path}:3: "))
    assert caught.value.message.isascii() or "é" not in caught.value.message
    for build in (keys.pairs_prefix, keys.adapters_prefix, keys.adapter_channel):
        with pytest.raises(ValueError):
            build(name)


@given(st.text(max_size=70))
@settings(max_examples=200, deadline=None)
def test_no_text_outside_the_rule_passes_as_a_name(text):
    allowed = 0 < len(text) < 64 and set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    allowed = allowed and not text.startswith("-") and not text.endswith("-")
    assert bool(NAME.match(text)) == allowed
    if not allowed:
        with pytest.raises(ValueError) as caught:
            check_name(text)
        assert len(str(caught.value)) < 250
        assert str(caught.value).isascii()
        assert str(caught.value).isprintable()


def test_the_longest_and_shortest_names_are_allowed():
    assert check_name("a" * 63) == "a" * 63
    assert check_name("7") == "7"


def test_case_twins_are_refused_because_some_disks_cannot_tell_them_apart(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- {name: oil, prompt: x}\n- {name: Oil, prompt: y}\n")
    with pytest.raises(InputError, match=":2: name 'Oil' has capitals"):
        load_catalogue(str(path))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("x" * 10_000, "has 10000 characters, at most 500"),
        ("a\nb", "a line break"),
        ("a\u2028b", "a line break"),
        ("a\tb", r"U\+0009"),
        ("a\u202eb", r"U\+202E"),
        ("\x1b[31mred", r"U\+001B"),
        ("=HYPERLINK(1)", "formula"),
        ("  +1", "formula"),
        ("@x", "formula"),
        ("   ", "is empty"),
    ],
    ids=lambda v: ascii(v)[:20],
)
def test_a_hostile_prompt_is_refused_with_its_line(tmp_path, prompt, words):
    path = tmp_path / "c.yaml"
    path.write_text(f"- name: a\n  prompt: {yaml_text(prompt)}\n")
    with pytest.raises(InputError, match=words) as caught:
        load_catalogue(str(path))
    assert caught.value.message.startswith(f"{path}:2: concept `a`: prompt ")


def yaml_text(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08X}" for c in text) + '"'


def test_emoji_and_other_scripts_are_fine_in_prompts(tmp_path):
    path = tmp_path / "c.yaml"
    prompt = 'make it 🎨, 油絵のように, «en huile» 👩\u200d🎨; rm -rf / $(id) "quoted" | a,b'
    path.write_text(yaml.safe_dump([{"name": "a", "prompt": prompt}]), encoding="utf-8")
    assert load_catalogue(str(path))[0].prompt == prompt


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "No", "ON", "true", "null", "~", "1", "1.5"])
def test_unquoted_words_that_some_yaml_readers_take_for_something_else_are_refused_as_names(tmp_path, word):
    path = tmp_path / "c.yaml"
    path.write_text(f"- name: {word}\n  prompt: x\n")
    with pytest.raises(InputError, match=":1: "):
        load_catalogue(str(path))


@pytest.mark.parametrize("word", ["on", "no", "true", "null", "1", "0x10", "2026-01-01"])
def test_in_quotes_such_a_word_is_a_name(tmp_path, word):
    path = tmp_path / "c.yaml"
    path.write_text(f"- name: '{word}'\n  prompt: x\n")
    assert load_catalogue(str(path))[0].name == word


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!python/object/apply:os.system ['touch marker']\n", ":1: tag .* is not allowed"),
        ("name: !!python/name:os.system\n", ":1: tag .* is not allowed"),
        ("seed: 1\nname: !custom x\n", ":2: tag .* is not allowed"),
        ("seed: 1\nseed: 2\n", ":2: duplicate key `seed`, first on line 1"),
        ("pairs:\n  resolution: 64\n  resolution: 128\n", ":3: duplicate key `resolution`, first on line 2"),
        ("pairs: &p\n  <<: *p\n", "alias that contains itself|not valid"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: b: c\n", ":1: not valid YAML"),
        ("a: 1\n--- \nb: 2\n", "not valid YAML"),
        ("? [1, 2]\n: x\n", ":1: key .* must be text"),
        ("1: x\n", ":1: key 1 must be text"),
        ("teacher: {compile: yes}\n", ':1: `yes` is true or false in some YAML readers: write "yes"'),
        ("[" * 3000 + "]" * 3000, "nested"),
        ("a: " + "{b: " * 200 + "1" + "}" * 200, "nested"),
    ],
    ids=lambda v: ascii(v)[:30],
)
def test_yaml_tricks_are_refused_with_their_line(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "run.yaml")
    assert not (tmp_path / "marker").exists()


# The process's own peak: ru_maxrss would keep that of the process this one was forked from.
MEMORY_OF_A_REFUSAL = """
import sys
from pathlib import Path
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import ConfigError
def peak_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
load_config(None)
before = peak_mb()
try:
    load_config(Path(sys.argv[1]))
except ConfigError as error:
    print(peak_mb() - before, error)
"""


@pytest.mark.parametrize("width", [10, 5], ids=["many aliases", "few aliases"])
def test_an_alias_bomb_is_refused_before_it_grows(tmp_path, width):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join(f'*a{i - 1}' for _ in range(width))}]" for i in range(1, 10)]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    command = [sys.executable, "-c", MEMORY_OF_A_REFUSAL, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert "aliases" in done.stdout, done.stderr[-2000:]
    assert float(done.stdout.split()[0]) < 200  # MB; expanded it would be gigabytes


def test_a_few_aliases_are_allowed():
    document = parse_yaml("a: &x {b: 1}\nc: *x\n", "run.yaml")
    assert document.value == {"a": {"b": 1}, "c": {"b": 1}}


def test_files_that_are_no_text_are_refused(tmp_path):
    for data, words in (
        (b"name: \xff\xfe\n", "not UTF-8"),
        (b"na\0me: x\n", "not valid YAML"),
        (bytes(9 * 2**20), "larger than 8"),
    ):
        (tmp_path / "run.yaml").write_bytes(data)
        with pytest.raises(ConfigError, match=words):
            load_config(tmp_path / "run.yaml")


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_plain_value_or_an_error_that_names_the_file(text):
    try:
        value, complaint = parse_yaml(text, "run.yaml").value, ""
    except UserError as error:
        value, complaint = None, error.message
    if complaint:
        assert complaint.startswith("run.yaml")
        assert len(complaint) < 500
    else:
        assert parse_yaml(dump_yaml(value), "again.yaml").value == value


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
@settings(max_examples=150, deadline=None)
def test_what_is_written_reads_back_equal(value):
    assert parse_yaml(dump_yaml(value), "x.yaml").value == value


def test_the_command_prints_one_message_and_no_traceback(tmp_path):
    (tmp_path / "run.yaml").write_text("name: !!python/object:os.system {}\n")
    command = [sys.executable, "-m", "e2gan_cluster.cli", "config", "show", "--config", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/run.yaml:1: tag ")
    assert "Traceback" not in done.stderr
