"""Catalogues: lists, compositions, selection and their messages."""

import pickle
from pathlib import Path

import pytest

from e2gan_cluster.concepts import Concept, load_catalogue, select
from e2gan_cluster.errors import InputError


def write(folder: Path, text: str, name: str = "concepts.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def message(path: str) -> str:
    with pytest.raises(InputError) as caught:
        load_catalogue(path)
    return caught.value.message


LOOKS = """
- name: oil
  prompt: make it an oil painting
  wordings: [an oil painting, painted in oil]
  tags: [look]
  teacher: {steps: 4}
- {name: ink, prompt: make it an ink drawing, tags: [look, drawing]}
- {name: sepia, prompt: make it sepia}
"""


def test_a_list_is_read_with_all_fields(tmp_path):
    oil, ink, sepia = load_catalogue(write(tmp_path, LOOKS))
    assert oil == Concept(
        "oil", "make it an oil painting", ("an oil painting", "painted in oil"), ("look",), None, {"steps": 4}
    )
    assert ink.tags == ("look", "drawing")
    assert sepia.wordings == ()


def test_concepts_travel_to_other_processes(tmp_path):
    catalogue = load_catalogue(write(tmp_path, LOOKS))
    assert pickle.loads(pickle.dumps(catalogue)) == catalogue
    assert len(set(catalogue)) == 3


def test_a_composed_catalogue_is_every_look_in_every_setting(tmp_path):
    write(tmp_path, LOOKS, "looks.yaml")
    composed = """
compose:
  from: looks.yaml
  looks: [oil, sepia]
  prompt: "{look} {setting}"
  tags: [composed]
  settings:
    - {name: fog, prompt: in thick fog, wordings: [in mist], tags: [weather], teacher: {steps: 8}}
    - {name: night, prompt: at night}
"""
    found = load_catalogue(write(tmp_path, composed))
    assert [c.name for c in found] == ["oil-fog", "oil-night", "sepia-fog", "sepia-night"]
    assert found[0] == Concept(
        "oil-fog",
        "make it an oil painting in thick fog",
        ("an oil painting in mist", "painted in oil in mist"),
        ("look", "weather", "composed"),
        None,
        {"steps": 8},
    )


def test_looks_can_be_chosen_by_tag(tmp_path):
    write(tmp_path, LOOKS, "looks.yaml")
    composed = "compose: {from: looks.yaml, looks: {tag: look}, settings: [{name: fog, prompt: in fog}]}"
    assert [c.name for c in load_catalogue(write(tmp_path, composed))] == ["oil-fog", "ink-fog"]


def test_the_shipped_catalogues_make_hundreds_of_concepts():
    bundled, composed = load_catalogue("bundled"), load_catalogue("composed")
    assert len(bundled) >= 50
    assert len(composed) >= 200
    assert len({c.prompt for c in composed}) == len(composed)
    assert not {c.name for c in bundled} & {c.name for c in composed}


def test_selecting_keeps_the_asked_order_and_names_the_nearest_for_a_wrong_name(tmp_path):
    catalogue = load_catalogue(write(tmp_path, LOOKS))
    assert [c.name for c in select(catalogue, ["sepia", "oil"])] == ["sepia", "oil"]
    with pytest.raises(InputError, match="no concept named 'sepai'; did you mean `sepia`"):
        select(catalogue, ["sepai"])


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("- {name: a, prompt: x}\n- {name: a, prompt: y}\n", 2, "duplicate concept `a`, first on line 1"),
        ("- name: a\n  prompt: x\n- prompt: y\n", 3, "`name` is missing"),
        ("- name: a\n", 1, "`prompt` is missing"),
        ("- name: a\n  promt: x\n  prompt: y\n", 2, "unknown field 'promt'; did you mean `prompt`?"),
        ("- name: a\n  prompt: x\n  teacher: {steps: 0}\n", 3, "teacher.steps must be a whole number from 1 to 1000"),
        ("- name: a\n  prompt: x\n  teacher: {strength: true}\n", 3, "teacher.strength must be a number"),
        ("- name: a\n  prompt: x\n  wordings: text\n", 3, "must be a list"),
        ("- name: a\n  prompt: x\n  tags: [A b]\n", 3, "tag 'A b' must be 1 to 63"),
        ("- just-a-name\n", 1, "expected {name, prompt}"),
        ("[]\n", 1, "the list is empty"),
        ("name: a\n", 1, "a catalogue is a list"),
        ("compose:\n  looks: [oil]\n  settings: [{name: b, prompt: c}]\n", 2, "there is no `from` catalogue"),
        ("compose:\n  looks: [{name: a, prompt: b}]\n", 1, "`settings` must be a list"),
        ("compose:\n  from: bundled\n  looks: {tag: nothing}\n  settings: []\n", 3, "has the tag 'nothing'"),
        (
            "compose:\n  looks: [{name: a, prompt: b}]\n  settings: [{name: c, prompt: d}]\n  prompt: x\n",
            4,
            "must contain {look} and {setting}",
        ),
        (
            "compose:\n  looks: [{name: a-b, prompt: x}, {name: a, prompt: y}]\n"
            "  settings: [{name: c, prompt: x}, {name: b-c, prompt: y}]\n",
            1,
            "two pairs make the name `a-b-c`",
        ),
    ],
)
def test_a_wrong_catalogue_says_where_and_what(tmp_path, text, line, words):
    path = write(tmp_path, text)
    found = message(path)
    assert found.startswith(f"{path}:{line}: "), found
    assert words in found


def test_a_composed_name_that_grows_too_long_is_refused(tmp_path):
    text = f"compose: {{looks: [{{name: {'a' * 40}, prompt: x}}], settings: [{{name: {'b' * 40}, prompt: y}}]}}"
    assert "composed name" in message(write(tmp_path, text))


def test_a_catalogue_that_composes_itself_is_refused(tmp_path):
    text = "compose: {from: concepts.yaml, looks: {tag: a}, settings: [{name: b, prompt: c}]}"
    assert "`from` must name a plain catalogue" in message(write(tmp_path, text))


def test_a_mistyped_catalogue_name_gets_the_nearest():
    assert "did you mean `bundled`?" in message("bundle")
