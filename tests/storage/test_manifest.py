"""Manifests: parse and print are inverse, hostile ones are refused, every changed byte is found."""

import json
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2gan_cluster.errors import InputError, IntegrityError
from e2gan_cluster.storage import canonical, signing
from e2gan_cluster.storage.checks import sha256_of
from e2gan_cluster.storage.folder import verify_folder
from e2gan_cluster.storage.manifest import MANIFEST, FileEntry, Manifest, version_id
from e2gan_cluster.storage.signing import public_key_of
from tests.storage.registry_parts import adapter_files, facts, flip

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAMES = st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8})?\.(json|onnx|safetensors)", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=20), max_size=5), st.dictionaries(TEXT, JSON, max_size=4))
def test_parse_and_print_are_inverse(files, meta):
    manifest = Manifest.build(files, meta)
    assert Manifest.parse(manifest.to_json(), "m") == manifest
    assert Manifest.parse(manifest.to_json(), "m").to_json() == manifest.to_json()


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_version_depends_on_names_and_bytes_only(files, data):
    shuffled = dict(data.draw(st.permutations(list(files.items()))))
    version = version_id(Manifest.build(files, {"a": 1}).files)
    assert version == version_id(Manifest.build(shuffled, {"b": 2}).files)
    name = data.draw(st.sampled_from(sorted(files)))
    assert version != version_id(Manifest.build({**files, name: files[name] + b"x"}, {}).files)


BAD_NAMES = [
    "../x.json", "a/../../x.json", "/abs.json", "a\\b.json", "C:/x.json", "a//b.json", "./a.json", ".hidden.json", "",
    "nul\0.json", "new\nline.json", "manifest.json", "adapter_model.bin", "weights.pt", "weights.pth", "x.pkl",
    "x.ckpt",    "run.sh", "lib.so", "x.py", "noending",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_paths_and_kinds_that_could_harm_are_refused_both_ways(name):
    with pytest.raises(InputError):
        Manifest.build({name: b""}, {})
    forged = Manifest((FileEntry(name, 0, sha256_of(b"")),)).to_json()
    with pytest.raises(IntegrityError):
        Manifest.parse(forged, "m")


def test_twins_are_refused():
    entry = FileEntry("a.json", 0, sha256_of(b""))
    for files in ((entry, entry), (entry, FileEntry("A.json", 0, sha256_of(b"")))):
        with pytest.raises(IntegrityError, match="twice"):
            Manifest.parse(Manifest(files).to_json(), "m")
    nested = (entry, FileEntry("a.json/b.json", 0, sha256_of(b"")))
    with pytest.raises(IntegrityError, match="below a file"):
        Manifest.parse(Manifest(nested).to_json(), "m")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"digest": 1, "files": [1], "meta": {}}\n',
        canonical.dump({"digest": "0" * 64, "files": [{"path": 1, "size": "x", "sha256": None}], "meta": {}}),
        canonical.dump({"digest": "0" * 64, "files": [{"path": "a.json", "size": -1, "sha256": "0" * 64}], "meta": {}}),
        canonical.dump({"digest": "0" * 64, "files": {}, "meta": []}),
    ],
)  # fmt: skip
def test_other_content_is_an_integrity_error(data):
    with pytest.raises(IntegrityError):
        Manifest.parse(data, "m")


def test_facts_that_are_not_json_are_refused():
    for value in (float("nan"), {1, 2}, b"bytes", "\ud800"):
        with pytest.raises(InputError):
            Manifest.build({}, {"value": value})


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    """An Ed25519 key as openssl makes it."""
    path = tmp_path_factory.mktemp("keys") / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)], check=True, capture_output=True)
    return path


@pytest.fixture(params=["plain", "signed"])
def folder(request, tmp_path):
    """A small published folder."""
    key = request.getfixturevalue("key_file") if request.param == "signed" else None
    files = {name: data for name, data in adapter_files().items() if name.startswith(("adapter_c", "README"))}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    manifest = Manifest.build(files, facts(), key)
    (tmp_path / MANIFEST).write_bytes(manifest.to_json())
    verify_folder(tmp_path)
    return tmp_path


def test_any_changed_byte_of_any_file_is_found(folder):
    step = 4 if b"signature" in (folder / MANIFEST).read_bytes() else 1
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for position in range(0, len(data), step):
            path.write_bytes(flip(data, position, bit=position % 8))
            with pytest.raises(IntegrityError):
                verify_folder(folder)
        for changed in (data[:-1], data + b"\n", b""):
            path.write_bytes(changed)
            with pytest.raises(IntegrityError):
                verify_folder(folder)
        path.write_bytes(data)
    verify_folder(folder)


def test_added_missing_and_linked_files_are_found(folder):
    (folder / "extra.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"extra\.json was added"):
        verify_folder(folder)
    (folder / "extra.json").unlink()
    (folder / "README.md").rename(folder.parent / "moved")
    with pytest.raises(IntegrityError, match=r"README\.md is missing"):
        verify_folder(folder)
    (folder / "README.md").symlink_to(folder.parent / "moved")
    with pytest.raises(IntegrityError, match="symbolic link"):
        verify_folder(folder)


def test_without_the_library_signed_manifests_are_read_but_not_trusted(key_file, monkeypatch):
    manifest = Manifest.build({"a.json": b"{}"}, {}, key_file)
    trusted = public_key_of(key_file)
    monkeypatch.setattr(signing, "find_spec", lambda name: None)
    assert Manifest.parse(manifest.to_json(), "m") == manifest
    for use in (lambda: Manifest.parse(manifest.to_json(), "m", trusted), lambda: Manifest.build({}, {}, key_file)):
        with pytest.raises(InputError, match="cryptography") as caught:
            use()
        assert "[sign]" in caught.value.fix


def test_signatures_bind_the_content_to_a_key(tmp_path, key_file):
    manifest = Manifest.build({"a.json": b"{}"}, {"concept": "oil"}, key_file)
    trusted = public_key_of(key_file)
    assert Manifest.parse(manifest.to_json(), "m", trusted) == manifest
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(other)], check=True, capture_output=True)
    with pytest.raises(IntegrityError, match="signed by"):
        Manifest.parse(manifest.to_json(), "m", public_key_of(other))
    with pytest.raises(IntegrityError, match="not signed"):
        Manifest.parse(Manifest.build({"a.json": b"{}"}, {}).to_json(), "m", trusted)
    content = json.loads(manifest.to_json())
    forged = Manifest.build({"a.json": b"[]"}, {"concept": "oil"})
    stolen = {**json.loads(forged.to_json()), "signature": content["signature"]}
    with pytest.raises(IntegrityError, match="does not fit"):
        Manifest.parse(canonical.dump(stolen), "m")
    with pytest.raises(InputError, match="signing key"):
        Manifest.build({}, {}, tmp_path / "no.pem")
