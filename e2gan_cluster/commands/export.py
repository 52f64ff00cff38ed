"""`e2gan export | edit`: device files of published adapters, and using them on a photo."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2gan_cluster.commands.options import ConfigOption, LogFormatOption, SetOption
from e2gan_cluster.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from e2gan_cluster.config import RunConfig
    from e2gan_cluster.export.adapter_export import ExportResult
    from e2gan_cluster.export.names import Format

NUM_PHOTOS = 8
FormatsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        help="onnx-adapter, onnx-adapter-fp16, required-inputs, merged, merged-fp16, merged-int8, ort, coreml.",
    ),
]


def export(
    config: ConfigOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to fill.", show_default=False)],
    concept: Annotated[list[str] | None, typer.Option("--concept", help="Only these; may be repeated.")] = None,
    formats: FormatsOption = None,
    settings: SetOption = None,
    log_format: LogFormatOption = "auto",
) -> None:
    """Make device files of published adapters again, here: another format, another size, a newer runtime.

    Every file is run in ONNX Runtime on held-out photos and compared with torch. `e2gan run` does this for the
    formats of `publish.formats` by itself; nothing is published here. DIR works as `e2gan edit --from DIR`.

    Example: `e2gan export --config configs/demo.yaml --format merged-int8 --out build/int8`
    """
    from e2gan_cluster.batch import peek_batch
    from e2gan_cluster.config_io import load_config
    from e2gan_cluster.export.local import Exporter
    from e2gan_cluster.progress import make_reporter
    from e2gan_cluster.storage.registry import list_adapters

    batch = peek_batch(load_config(config, settings or ()))
    channel = batch.config.publish.channel
    names = concept or [info.concept for info in list_adapters(batch.store) if channel in info.channels]
    if not names:
        raise InputError(f"{batch.store.url} has no published adapter", "run the batch first: e2gan run")
    chosen: list[Format] = [_format(name) for name in formats] if formats else list(batch.config.publish.formats)
    reporter = make_reporter(log_format)
    exporter = Exporter(batch.store, batch.config.publish, out, _heldout_photos(batch.config))
    reporter.start("export", len(names), "concepts")
    for done, name in enumerate(names, start=1):
        _print_result(name, exporter.export(name, chosen))
        reporter.update("export", done, concept=name)
    reporter.finish("export", str(out))


def _print_result(name: str, result: "ExportResult") -> None:
    for file, size in sorted(result.sizes.items()):
        parity = result.parity.get(file)
        told = f"  max error {parity.max_error:.1e}  {parity.psnr_db:.1f} dB" if parity else "  not run here"
        typer.echo(f"{name}  {file}  {size:,} bytes{told}")
    for file, reason in sorted(result.skipped.items()):
        typer.echo(f"{name}  {file} left out: {reason}")


def edit(
    image: Annotated[Path, typer.Option("--image", "-i", metavar="FILE", help="Photo, any size.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="Picture to write: .png, .jpg or .webp.", show_default=False),
    ],
    concept: Annotated[str | None, typer.Option("--concept", help="Effect; not needed if there is only one.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Folder written by e2gan pull.", show_default=False)
    ] = None,
    registry: Annotated[
        str | None, typer.Option("--registry", "-r", metavar="URL", help="Or: storage to pull the effect from.")
    ] = None,
    channel: Annotated[str, typer.Option("--channel", help="Channel, with --registry.")] = "latest",
    fmt: Annotated[str | None, typer.Option("--format", "-f", help="Files to run; default: best at hand.")] = None,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Larger photos are refused before decoding.")] = 64.0,
) -> None:
    """Edit a photo with a published effect in ONNX Runtime, as a device does. Needs neither torch nor a GPU.

    Example: `e2gan edit --from build/effects --concept oil-painting --image photo.jpg --out out.png`
    """
    from e2gan_cluster.export.runtime import Editor

    if (folder is None) == (registry is None):
        raise InputError("edit needs one of --from DIR and --registry URL", "give a pulled folder or a storage root")
    wanted = _format(fmt) if fmt else None
    photo_HWC = _read_photo(image, max_megapixels)
    with tempfile.TemporaryDirectory(prefix="e2gan-edit-") as scratch:
        if folder is None:
            folder = Path(scratch)
            _pull(str(registry), folder, concept, channel, wanted)
        edited_HWC = Editor.open(folder, wanted).edit(photo_HWC, concept)
    _write_picture(edited_HWC, out)
    typer.echo(f"{out}: {edited_HWC.shape[1]} x {edited_HWC.shape[0]}", err=True)


def _format(name: str) -> "Format":
    from e2gan_cluster.export.names import FORMAT_FILES

    known: list[Format] = list(FORMAT_FILES)
    for fmt in known:
        if fmt == name:
            return fmt
    raise InputError(f"--format {name} is not known", f"choose among {', '.join(FORMAT_FILES)}")


def _pull(registry: str, target: Path, concept: str | None, channel: str, fmt: "Format | None") -> None:
    from e2gan_cluster.storage import open_store
    from e2gan_cluster.storage.pull import pull
    from e2gan_cluster.storage.pull_plan import PullRequest

    if concept is None:
        raise InputError("edit --registry needs --concept NAME", "list them with: e2gan adapters list")
    pull(open_store(registry), PullRequest(target, (concept,), channel, formats=(fmt or "onnx-adapter",)))


def _read_photo(path: Path, max_megapixels: float) -> "np.ndarray":
    from e2gan_cluster.pairs.decode import STATUS_HELP, decode_photo

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path of --image") from None
    photo = decode_photo(data, max_megapixels)
    if photo.image_HWC is None:
        raise InputError(f"{path}: {STATUS_HELP.get(photo.status, photo.status)}", "give another photo")
    return photo.image_HWC


def _write_picture(image_HWC: "np.ndarray", path: Path) -> None:
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_HWC).save(path)
    except ValueError:
        raise InputError(f"{path}: unknown kind of picture", "let the name end in .png, .jpg or .webp") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}", "check the path of --out") from None


def _heldout_photos(config: "RunConfig") -> "np.ndarray":
    import numpy as np

    from e2gan_cluster.pairs.photos import list_photos, load_photo, split_of, square_crop

    side = config.publish.resolution or config.pairs.resolution
    crops = []
    for ref in list_photos(config.photos):
        photo = load_photo(ref, config.photos.max_megapixels)
        if photo.image_HWC is None or split_of(photo.source_id, config.photos.heldout_fraction) != "heldout":
            continue
        crops.append(square_crop(photo.image_HWC, side, 0, photo.source_id))
        if len(crops) == NUM_PHOTOS:
            break
    if not crops:
        raise InputError("there is no held-out photo to compare on", "check photos.source and photos.heldout_fraction")
    return np.stack(crops)
