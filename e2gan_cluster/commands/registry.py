"""`e2gan publish | adapters | pull | verify`: the adapter registry and what app builds take from it.

Needs no torch, Ray, diffusers or MLflow.
"""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2gan_cluster.commands.options import LogFormatOption
from e2gan_cluster.errors import InputError
from e2gan_cluster.progress import make_reporter
from e2gan_cluster.storage import LINKS_SUFFIX, open_store

if TYPE_CHECKING:
    from e2gan_cluster.storage.registry import AdapterInfo

RegistryOption = Annotated[
    str,
    typer.Option(
        "--registry", "-r", envvar="E2GAN_REGISTRY", metavar="URL",
        help="Storage root of a run: a folder, s3://bucket/prefix or https://...", show_default=False,
    ),
]  # fmt: skip
ChannelOption = Annotated[str, typer.Option("--channel", help="Channel, e.g. latest, canary, prod.")]
ConceptArgument = Annotated[str, typer.Argument(metavar="CONCEPT", help="Concept name.", show_default=False)]
SignKeyOption = Annotated[
    Path | None,
    typer.Option("--sign-key", metavar="PEM", help="Ed25519 private key that signs the manifest.", show_default=False),
]
VerifyKeyOption = Annotated[
    Path | None,
    typer.Option("--verify-key", metavar="PEM", help="Public key that must have signed it.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(no_args_is_help=True, help="List, compare and move published adapters.")


def publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="PEFT folder to publish.", show_default=False)],
    concept: Annotated[str, typer.Option("--concept", help="Concept name.", show_default=False)],
    registry: RegistryOption,
    channel: ChannelOption = "latest",
    prompt: Annotated[str, typer.Option("--prompt", help="Prompt, for the model card.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Licence, for the model card.")] = "not stated",
    sign_key: SignKeyOption = None,
) -> None:
    """Publish a PEFT folder by hand; its base has to be in the same registry.

    Refused: NaN, tensors that do not fit the ranks or the base, pickles, an unknown base.

    Example: `e2gan publish out/oil --concept oil-painting --registry runs/demo --prompt "an oil painting"`
    """
    from e2gan_cluster.storage.by_hand import publish_folder

    facts = {"prompt": prompt, "licence": licence}
    version = publish_folder(open_store(registry), concept, folder, facts, channel=channel, sign_key=sign_key)
    typer.echo(f"{concept} {version}  {channel} -> {version}")


@app.command("list")
def list_(registry: RegistryOption, as_json: JsonOption = False) -> None:
    """Show all adapters: channels, base, size, metrics.

    Example: `e2gan adapters list --registry s3://effects/demo`
    """
    from e2gan_cluster.storage.registry import list_adapters

    found = list_adapters(open_store(registry))
    if as_json:
        typer.echo(json.dumps([_as_dict(info) for info in found], indent=2))
        return
    rows = [("concept", "latest", "other channels", "base", "adapter", "metrics"), *(_row(info) for info in found)]
    _print_table(rows)
    typer.echo(f"{len(found)} adapters", err=True)


def _as_dict(info: "AdapterInfo") -> dict[str, Any]:
    meta = dict(info.manifest.meta) if info.manifest else {}
    return {
        "concept": info.concept,
        "channels": dict(info.channels),
        "versions": list(info.versions),
        "problem": info.problem,
        "meta": meta,
    }


def _row(info: "AdapterInfo") -> tuple[str, ...]:
    others = " ".join(f"{name}={version}" for name, version in info.channels.items() if name != "latest")
    latest = info.channels.get("latest", "-")
    if info.manifest is None:
        return (info.concept, latest, others, "-", "-", info.problem or "no channel")
    meta = info.manifest.meta
    weights = info.manifest.entry("adapter_model.safetensors")
    size = f"{weights.size / 1e6:.2f} MB" if weights else "-"
    return (info.concept, latest, others, str(meta.get("base_id", "-")), size, _metrics(meta.get("metrics")))


def _metrics(metrics: object) -> str:
    if not isinstance(metrics, dict):
        return ""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in sorted(metrics.items()))


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def show(
    concept: ConceptArgument,
    registry: RegistryOption,
    ref: Annotated[str, typer.Argument(metavar="[VERSION]", help="Version or channel.")] = "latest",
    as_json: JsonOption = False,
) -> None:
    """Show one version: facts, ranks, metrics, files; and where the channels point.

    Example: `e2gan adapters show oil-painting prod --registry runs/demo`
    """
    from e2gan_cluster.storage.registry import read_manifest, resolve

    store = open_store(registry)
    version = resolve(store, concept, ref)
    manifest = read_manifest(store, concept, version)
    if as_json:
        typer.echo(manifest.to_json().decode(), nl=False)
        return
    typer.echo(f"{concept} {version}" + ("  signed" if manifest.signature else ""))
    for name, value in sorted(manifest.meta.items()):
        shown = _metrics(value) if name == "metrics" else json.dumps(value, ensure_ascii=False)
        typer.echo(f"  {name}: {shown}")
    _print_table([(f"  {e.path}", f"{e.size:>12}", e.sha256[:16]) for e in manifest.files] or [("  no files",)])


@app.command()
def diff(
    concept: ConceptArgument,
    before: Annotated[str, typer.Argument(help="Version or channel.", show_default=False)],
    after: Annotated[str, typer.Argument(help="Version or channel.", show_default=False)],
    registry: RegistryOption,
) -> None:
    """Compare two versions of an adapter: facts, ranks, metrics, files.

    Example: `e2gan adapters diff oil-painting prod latest --registry runs/demo`
    """
    from e2gan_cluster.storage import registry as versions

    changes = versions.diff(open_store(registry), concept, before, after)
    for change in changes:
        typer.echo(f"{change.field}: {_shown(change.before)} -> {_shown(change.after)}")
    if not changes:
        typer.echo("no difference")


def _shown(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


@app.command()
def promote(
    concept: ConceptArgument,
    registry: RegistryOption,
    ref: Annotated[str, typer.Argument(metavar="[VERSION]", help="Version or channel to promote.")] = "latest",
    channel: Annotated[str, typer.Option("--to", help="Channel to move.")] = "prod",
) -> None:
    """Point a channel to a version, or to where another channel points.

    Example: `e2gan adapters promote oil-painting canary --to prod --registry s3://effects/demo`
    """
    from e2gan_cluster.storage import registry as versions

    version = versions.promote(open_store(registry), concept, ref, channel)
    typer.echo(f"{concept}  {channel} -> {version}")


@app.command()
def rollback(concept: ConceptArgument, registry: RegistryOption, channel: ChannelOption = "latest") -> None:
    """Point a channel back to where it pointed before its last move.

    Example: `e2gan adapters rollback oil-painting --channel prod --registry s3://effects/demo`
    """
    from e2gan_cluster.storage import registry as versions

    typer.echo(f"{concept}  {channel} -> {versions.rollback(open_store(registry), concept, channel)}")


@app.command()
def gc(
    registry: RegistryOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list.")] = False,
    older_than_hours: Annotated[float, typer.Option(min=0, help="Leave younger files alone.")] = 24.0,
    unreferenced: Annotated[
        bool, typer.Option("--unreferenced", help="Also versions that no channel points to or remembers.")
    ] = False,
) -> None:
    """Remove what interrupted publishes and uploads left behind.

    Example: `e2gan adapters gc --dry-run --registry s3://effects/demo`
    """
    from e2gan_cluster.storage.gc import collect

    store = open_store(registry)
    found = collect(store, remove=not dry_run, older_than_s=older_than_hours * 3600, unreferenced=unreferenced)
    for item in found:
        typer.echo(f"{item.key}  {item.num_bytes} bytes  {item.reason}")
    size = sum(item.num_bytes for item in found) / 1e6
    typer.echo(f"{len(found)} objects, {size:.1f} MB {'would be removed' if dry_run else 'removed'}", err=True)


@app.command()
def links(
    registry: RegistryOption,
    out: Annotated[Path, typer.Option("--out", "-o", help=f"File to write, *{LINKS_SUFFIX}.", show_default=False)],
    concepts: Annotated[list[str] | None, typer.Argument(metavar="[CONCEPT]...", help="Default: all.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="See e2gan pull.")] = None,
    channel: ChannelOption = "latest",
    expires_hours: Annotated[float, typer.Option(min=0.01, max=168, help="How long the links work.")] = 24.0,
) -> None:
    """Write presigned links, so that a build machine without credentials can pull with `--registry FILE`.

    Example: `e2gan adapters links oil-painting --registry s3://effects/demo --out build.links.json`
    """
    from e2gan_cluster.storage.links import write_links

    names = tuple(concepts or ())
    count = write_links(open_store(registry), out, names, channel, formats or ["onnx-adapter"], expires_hours * 3600)
    typer.echo(f"{out}: {count} links, valid for {expires_hours:g} h; keep the file secret")


def pull(
    registry: RegistryOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to fill.", show_default=False)],
    concepts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONCEPT]...", help="NAME, NAME@channel or NAME@version; default: all."),
    ] = None,
    more_concepts: Annotated[
        list[str] | None, typer.Option("--concept", help="The same as an option; may be repeated.", show_default=False)
    ] = None,
    names_file: Annotated[
        Path | None, typer.Option("--list", metavar="FILE", help="File with one concept a line.", show_default=False)
    ] = None,
    lock: Annotated[
        Path | None, typer.Option("--lock", metavar="FILE", help="Exactly what this lock says.", show_default=False)
    ] = None,
    channel: ChannelOption = "latest",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help="onnx-adapter (default), onnx-adapter-fp16, required-inputs, merged, merged-fp16, merged-int8, ort, "
            "coreml, peft.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Base id that the app ships.", show_default=False)] = None,
    verify_key: VerifyKeyOption = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Parallel transfers.")] = 16,
    log_format: LogFormatOption = "auto",
) -> None:
    """Bring adapters into an app's build: only what changed, verified, all or nothing; writes e2gan.lock.

    Example: `e2gan pull oil-painting --registry s3://effects/demo --out app/src/main/assets/effects`
    """
    from e2gan_cluster.storage.formats import check_formats
    from e2gan_cluster.storage.lock import read_lock
    from e2gan_cluster.storage.pull import pull as run_pull
    from e2gan_cluster.storage.pull_plan import PullRequest
    from e2gan_cluster.storage.signing import public_key_of

    pinned = read_lock(lock) if lock else None
    if lock and pinned is None:
        raise InputError(f"lock file {lock} does not exist", "check the path, or pull without --lock")
    request = PullRequest(
        target=out,
        concepts=(*(concepts or ()), *(more_concepts or ()), *(_lines(names_file) if names_file else ())),
        channel=channel,
        lock=pinned,
        formats=check_formats(formats or (pinned.formats if pinned else ["onnx-adapter"])),
        base_id=base,
        trusted=public_key_of(verify_key) if verify_key else None,
        workers=workers,
    )
    result = run_pull(open_store(registry), request, make_reporter(log_format))
    for name in result.changed:
        pin = result.lock.adapters.get(name)
        typer.echo(f"{name} {pin.version if pin else result.lock.base_id}")
    for name in result.removed:
        typer.echo(f"{name} removed")
    if result.skipped:
        typer.echo(f"left out, of other bases: {', '.join(result.skipped)}", err=True)
    typer.echo(
        f"{out}: {len(result.changed)} changed, {len(result.unchanged)} unchanged, base {result.lock.base_id}; "
        f"{result.files} files, {result.num_bytes / 1e6:.1f} MB in {result.seconds:.1f} s",
        err=True,
    )


def _lines(path: Path) -> Iterable[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"list {path} cannot be read: {error}", "give a text file with one concept a line") from None
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Pulled or published folder.", show_default=False)],
    verify_key: VerifyKeyOption = None,
) -> None:
    """Compare a pulled folder with what was published: every byte, nothing added, nothing missing.

    Example: `e2gan verify app/src/main/assets/effects`
    """
    from e2gan_cluster.storage.folder import verify_folder
    from e2gan_cluster.storage.signing import public_key_of

    begin_s = time.monotonic()
    found = verify_folder(folder, public_key_of(verify_key) if verify_key else None)
    for concept, version in found.adapters.items():
        typer.echo(f"{concept} {version}")
    elapsed_s = time.monotonic() - begin_s
    typer.echo(
        f"{folder}: {found.files} files, {found.num_bytes / 1e6:.1f} MB, all as published ({elapsed_s:.1f} s)", err=True
    )
