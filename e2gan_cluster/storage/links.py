"""Presigned links for a pull without credentials: S3 signs one object per link, so a pull needs one for each.

Example:
    write_links(store, Path("build.links.json"), ("oil-painting",), "latest", ["onnx-adapter"], 3600)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from e2gan_cluster.errors import InputError
from e2gan_cluster.storage import LINKS_SUFFIX, files, keys
from e2gan_cluster.storage.base import ObjectStore
from e2gan_cluster.storage.formats import check_formats
from e2gan_cluster.storage.manifest import MANIFEST
from e2gan_cluster.storage.pull_plan import PullRequest, make_plan
from e2gan_cluster.storage.s3 import S3Store


def write_links(
    store: ObjectStore, out: Path, concepts: Sequence[str], channel: str, formats: Sequence[str], expires_s: float
) -> int:
    """Sign a link for every object that a pull of these adapters reads.

    Args:
        store: Registry in S3.
        out: File to write, ``*.links.json``, for its owner's eyes only.
        concepts: Names; empty: all.
        channel: Channel they are pulled from.
        formats: Export formats.
        expires_s: How long the links work.

    Returns:
        Number of links.

    Raises:
        InputError: Not an S3 registry, or a file name that pull would not know.
    """
    if not isinstance(store, S3Store):
        raise InputError(f"{store.url} is not in S3, so nothing can be presigned", "pull from it directly")
    if not out.name.endswith(LINKS_SUFFIX):
        raise InputError(f"{out} must end in {LINKS_SUFFIX}", f"write {out.with_suffix('').name}{LINKS_SUFFIX}")
    nowhere = out.parent / f".no-folder-{out.name}"  # a plan for an empty folder reads everything
    plan = make_plan(store, PullRequest(nowhere, tuple(concepts), channel, formats=check_formats(formats)), None)
    wanted = [item.prefix + name for item in plan.items for name in (*item.files, MANIFEST)]
    wanted += [keys.adapter_channel(concept, channel) for concept in plan.lock.adapters]
    signed = {key: store.presign(key, round(expires_s)) for key in sorted(wanted)}
    host = urlsplit(next(iter(signed.values())))
    content = {"base": f"{host.scheme}://{host.netloc}", "links": signed}
    out.touch(mode=0o600)
    files.write(out, json.dumps(content, indent=1).encode())
    out.chmod(0o600)
    return len(signed)
