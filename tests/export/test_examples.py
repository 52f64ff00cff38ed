"""The example apps name the files and tensors that the exporter makes, and their files are well-formed."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from e2gan_cluster.export import names, tiles

EXAMPLES = Path(__file__).parents[2] / "examples"
ANDROID = EXAMPLES / "android" / "app"
NAMESPACE = "{http://schemas.android.com/apk/res/android}"


def text(path: str) -> str:
    return (EXAMPLES / path).read_text(encoding="utf-8")


def test_android_xml_is_well_formed_and_of_its_kind():
    roots = {path.name: ElementTree.parse(path).getroot().tag for path in ANDROID.rglob("*.xml")}
    assert roots.pop("AndroidManifest.xml") == "manifest"
    assert roots.pop("strings.xml") == "resources"
    assert roots.pop("activity_main.xml").endswith("Layout")
    assert not roots


def test_android_strings_and_ids_that_are_used_exist():
    strings = {e.attrib["name"] for e in ElementTree.parse(ANDROID / "src/main/res/values/strings.xml").getroot()}
    layout = ElementTree.parse(ANDROID / "src/main/res/layout/activity_main.xml")
    ids = {e.attrib[f"{NAMESPACE}id"].removeprefix("@+id/") for e in layout.iter() if f"{NAMESPACE}id" in e.attrib}
    sources = "".join(path.read_text() for path in ANDROID.rglob("*") if path.suffix in (".kt", ".xml"))
    assert set(re.findall(r"(?:R\.string\.|@string/)(\w+)", sources)) == strings
    assert set(re.findall(r"R\.id\.(\w+)", sources)) == ids
    manifest = ElementTree.parse(ANDROID / "src/main/AndroidManifest.xml")
    activity = next(e.attrib[f"{NAMESPACE}name"] for e in manifest.iter("activity")).lstrip(".")
    assert list(ANDROID.rglob(f"{activity}.kt"))


def test_android_names_are_the_exporters():
    kotlin = text("android/app/src/main/kotlin/org/example/effects/EffectEditor.kt")
    constants = dict(re.findall(r'const val (\w+) = "?([\w.]+)"?', kotlin))
    assert constants["BASE_FILE"] == names.BASE_ONNX
    assert constants["ADAPTER_FILE"] == names.FORMAT_FILES["onnx-adapter"]
    assert int(constants["MULTIPLE"]) == names.SIZE_MULTIPLE
    for name in (names.IMAGE, names.EDITED):
        assert f'"{name}"' in kotlin


def test_kotlin_brackets_close_in_the_order_they_open():
    paths = [*EXAMPLES.rglob("*.kt"), *EXAMPLES.rglob("*.kts")]
    assert len(paths) >= 5
    for path in paths:
        bare = re.sub(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', "", path.read_text(), flags=re.S)
        open_brackets = []
        for bracket in re.findall(r"[()\[\]{}]", bare):
            if bracket in "([{":
                open_brackets.append(bracket)
            else:
                assert open_brackets, path
                assert open_brackets.pop() + bracket in ("()", "[]", "{}"), path
        assert not open_brackets, path


def test_gradle_pulls_before_every_build():
    gradle = text("android/app/build.gradle.kts")
    assert 'tasks.named("preBuild")' in gradle
    assert "dependsOn(pullEffects)" in gradle
    assert re.search(r'"pull", "--registry", registry, "--out", out\.path, "--format", "onnx-adapter"', gradle)
    assert 'noCompress += listOf("onnx", "onnx_adapter")' in gradle


def test_pull_commands_in_the_examples_are_accepted():
    from typer.testing import CliRunner

    from e2gan_cluster.cli import app

    flags = set(re.findall(r"--[a-z-]+", CliRunner().invoke(app, ["pull", "--help"], env={"COLUMNS": "200"}).output))
    for path in ("android/app/build.gradle.kts", "ios/README.md", "web/README.md", "web/serve.mjs"):
        used = {
            flag for line in re.findall(r"e2gan pull ([^\n`]*)", text(path)) for flag in re.findall(r"--[a-z-]+", line)
        }
        assert used <= flags, path
    assert {"--registry", "--out", "--format", "--lock", "--log-format"} <= flags


def test_web_names_are_the_exporters():
    editor, server = text("web/public/editor.mjs"), text("web/serve.mjs")
    assert f"base/{names.BASE_INPUTS_ONNX}" in editor
    for source in (editor, server):
        assert names.FORMAT_FILES["required-inputs"] in source
    for key in (names.META_BASE, names.META_FORMAT):
        assert f'"{key}"' in editor
    assert f"FORMAT_VERSION = {names.FORMAT_VERSION};" in editor
    assert f"/ {names.SIZE_MULTIPLE}) * {names.SIZE_MULTIPLE}" in editor
    assert f"MIN_SIDE = {tiles.MIN_SIDE};" in editor


def test_web_packages_are_pinned():
    package = json.loads(text("web/package.json"))
    for version in {**package["dependencies"], **package["devDependencies"]}.values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
