"""`e2gan base` and `e2gan profile`: train the base GAN; sizes and costs of the networks."""

from typing import TYPE_CHECKING, Annotated

import typer

from e2gan_cluster.commands.options import ConfigOption, LogFormatOption, OptionalConfigOption, SetOption
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import InputError
from e2gan_cluster.progress import make_reporter

if TYPE_CHECKING:
    import torch


def base(
    config: ConfigOption,
    settings: SetOption = None,
    local: Annotated[bool, typer.Option(help="In this process, without Ray; one worker, same result.")] = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Train the base on its concepts' pairs with Ray Train and publish it; the same command again resumes.

    Example: `e2gan base --config configs/demo.yaml --set base.num_workers=2`
    """
    from e2gan_cluster.batch import open_batch, tracking_uri
    from e2gan_cluster.storage import keys
    from e2gan_cluster.track.mlflow_tracker import open_tracker
    from e2gan_cluster.train.base_driver import base_done, pretrain_base, train_base_local

    batch = open_batch(load_config(config, settings or ()))
    batch.store.probe()
    reporter = make_reporter(log_format)
    base_id = base_done(batch.config, batch.store, batch.base)
    if base_id is None:
        tracker = open_tracker(tracking_uri(batch.config), batch.config.name, batch.fingerprint)
        train = train_base_local if local else pretrain_base
        try:
            base_id = train(batch.config, batch.store, batch.base, reporter, tracker)
        finally:
            tracker.close()
    typer.echo(f"base {base_id}  {batch.config.storage}/{keys.base_prefix(base_id)}")


def profile(
    config: OptionalConfigOption = None,
    settings: SetOption = None,
    resolution: Annotated[int, typer.Option(help="Side of the photo, pixels; a multiple of 16.")] = 256,
    repeats: Annotated[int, typer.Option(help="Timed forward passes.")] = 5,
) -> None:
    """Print parameters, multiply-accumulates and torch CPU latency of the generator, by part, and of pix2pix's.

    MACs: convolutions, linear layers and attention products; transposed convolutions at output (and input) resolution.

    Example: `e2gan profile --set nets.width=32 --resolution 128`
    """
    import torch

    from e2gan_cluster.nn.baselines import ResNet9, UNet256
    from e2gan_cluster.nn.generator import Generator
    from e2gan_cluster.nn.profile import profile as measure

    if resolution % 16 or resolution < 16:
        raise InputError(f"--resolution {resolution} is not a multiple of 16", "use 128, 256, 512 ...")
    nets = load_config(config, settings or ()).nets
    x, text = torch.zeros(1, 3, resolution, resolution), torch.zeros(1, nets.text_tokens, 384)
    generator = Generator(nets.width, 384, nets.heads, nets.upsample, nets.output, nets.modulate)
    typer.echo(f"{resolution} px, batch 1, torch on {torch.get_num_threads()} CPU threads\n")
    typer.echo(f"{'network':<28}{'parameters':>12}{'MACs':>11}{'at input':>11}{'latency':>11}")
    _row(f"ours, width {nets.width}", generator, (x, text), repeats)
    counts = measure(generator, x, text)
    for name, part in counts.by_part.items():
        typer.echo(f"  {name:<26}{part.params / 1e6:>10.2f} M{part.macs / 1e9:>9.2f} G")
    _row("pix2pix ResNet-9, width 64", ResNet9(), (x,), repeats)
    levels = min(8, (resolution & -resolution).bit_length() - 1)
    _row(f"pix2pix U-Net, {levels} levels", UNet256(levels=levels), (x,), repeats)


def _row(name: str, module: "torch.nn.Module", inputs: "tuple[torch.Tensor, ...]", repeats: int) -> None:
    from e2gan_cluster.nn.profile import latency_s
    from e2gan_cluster.nn.profile import profile as measure

    at_output, at_input = (measure(module, *inputs, transposed_at=where) for where in ("output", "input"))
    typer.echo(
        f"{name:<28}{at_output.params / 1e6:>10.2f} M{at_output.macs / 1e9:>9.2f} G{at_input.macs / 1e9:>9.2f} G"
        f"{1e3 * latency_s(module.eval(), *inputs, repeats=repeats):>8.0f} ms"
    )
