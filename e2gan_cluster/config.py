"""The one typed config: every option with its default, unit and source.

Load and override with `e2gan_cluster.config_io`; print with ``e2gan config show --config configs/demo.yaml``.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from e2gan_cluster.names import check_name
from e2gan_cluster.redact import has_password

BUNDLED_BASE_WIDTHS = (24, 24)
"""Of the generator and the discriminator of the base that ships with the package."""

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["float32", "bfloat16", "float16"]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, allow_inf_nan=False)


class PhotosConfig(_Section):
    """Where photos come from and how they are cut."""

    source: str = Field(
        default="bundled",
        description="`bundled`, a folder, a glob, `s3://bucket/prefix`, a .parquet, .csv or .jsonl list",
    )
    limit: Positive | None = Field(default=None, description="use at most this many photos, in content-hash order")
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.25, description="share of photos that no training sees; split by content hash"
    )
    crops_per_photo: Positive = Field(
        default=1, description="square crops of each training photo (held-out photos give one centre crop)"
    )
    max_megapixels: PositiveFloat = Field(
        default=64.0, description="larger photos are refused before decoding; megapixels"
    )
    max_bad_fraction: Fraction = Field(default=0.5, description="more unreadable photos than this stop the run")


class ConceptsConfig(_Section):
    """Which concepts the base learns and which are new."""

    catalogue: str = Field(default="bundled", description="`bundled`, `composed`, or a YAML catalogue file")
    base: list[str] | None = Field(
        default=None, description="base concepts by name; empty = chosen by `base_selection`"
    )
    base_count: Positive = Field(default=20, description="number of base concepts to choose; E2GAN 3.2: about 20")
    base_selection: Literal["kmeans", "random"] = Field(
        default="kmeans", description="k-means on prompt embeddings (E2GAN 3.2), or a random draw for comparison"
    )
    new: list[str] | Literal["rest"] = Field(
        default="rest", description="concepts to adapt to; `rest` = all that are not in the base"
    )
    max_new: Positive | None = Field(
        default=None, description="adapt at most this many new concepts, in catalogue order"
    )


class TeacherConfig(_Section):
    """The diffusion editor."""

    backend: Literal[
        "instruct-pix2pix",
        "instruct-pix2pix-xl",
        "img2img",
        "lcm",
        "turbo",
        "flux-kontext",
        "qwen-image-edit",
        "custom",
    ] = Field(
        default="instruct-pix2pix", description="kind of diffusers pipeline; `custom` = an editor of your own in Python"
    )
    model: str = Field(
        default="bundled",
        description="`bundled`, a folder, a hub id such as `timbrooks/instruct-pix2pix`, `module:factory` if custom",
    )
    revision: str | None = Field(default=None, description="hub revision (commit) to pin")
    variant: str | None = Field(default=None, description="weight variant of the model repository, e.g. `fp16`")
    lora: str | None = Field(default=None, description="folder or hub id of LoRA weights for the teacher")
    device: Device = Field(default="auto", description="`auto` takes CUDA or MPS when there is one")
    dtype: Dtype = Field(default="float32", description="weights and activations; bfloat16 on GPUs")
    compile: bool = Field(default=False, description="torch.compile the denoiser")
    steps: Positive | None = Field(default=None, description="denoising steps; empty = the back-end's default")
    guidance_scale: NonNegativeFloat | None = Field(
        default=None, description="text guidance; empty = the back-end's default"
    )
    image_guidance_scale: NonNegativeFloat | None = Field(
        default=None, description="image guidance (InstructPix2Pix 3.2.1); empty = the back-end's default"
    )
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="noise added to the photo (SDEdit); img2img kinds only; empty = the back-end's default",
    )
    resolution: Positive | None = Field(
        default=None,
        description="side at which the teacher edits, scaled from and to the pairs'; empty = the model's own; pixels",
    )
    negative_prompt: str = Field(
        default="", description="what the edit should avoid, for all concepts without their own"
    )
    batch_size: Positive = Field(default=8, description="photos per call; halved by itself when memory runs out")


class FiltersConfig(_Section):
    """Which pairs are kept."""

    min_change: NonNegativeFloat = Field(
        default=0.005, description="mean absolute change (of 1.0) below which an edit did nothing"
    )
    max_change: PositiveFloat = Field(
        default=0.75, description="mean absolute change (of 1.0) above which the content is gone"
    )
    min_std: NonNegativeFloat = Field(
        default=0.01, description="standard deviation (of 1.0) below which an image is flat or black"
    )
    min_direction: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None,
        description="cosine of a pair's edit direction with the mean of its shard, default feature space; empty = off",
    )
    clip_model: str | None = Field(
        default=None, description="folder or hub id of a CLIP model for the three thresholds below"
    )
    min_clip_image: float = Field(default=0.7, description="CLIP photo-edit similarity (InstructPix2Pix 3.1.2)")
    min_clip_direction: float = Field(default=0.2, description="CLIP direction similarity (InstructPix2Pix 3.1.2)")
    min_clip_text: float = Field(default=0.2, description="CLIP edit-caption similarity (InstructPix2Pix 3.1.2)")
    max_dropped_fraction: Fraction = Field(default=0.5, description="a concept with more dropped pairs than this fails")


class PairsConfig(_Section):
    """Generation of (photo, edited photo) pairs on Ray Data."""

    resolution: Positive = Field(default=128, description="square side of the pairs; pixels, a multiple of 16")
    pairs_per_concept: Positive = Field(
        default=1000, description="training pairs of a concept at most; E2GAN uses 1,000"
    )
    rows_per_shard: Positive = Field(default=64, description="rows of one Parquet shard; also the unit of resume")
    image_format: Literal["png", "webp", "jpeg"] = Field(
        default="png", description="encoding in the shards; png is lossless"
    )
    min_workers: Positive = Field(default=1, description="teacher actors at least")
    max_workers: Positive = Field(default=2, description="teacher actors at most")
    worker_cpus: PositiveFloat = Field(
        default=0.9, description="CPUs per teacher actor; below 1 leaves room for Ray Data's own tasks"
    )
    worker_gpus: NonNegativeFloat = Field(default=0.0, description="GPUs per teacher actor, may be a fraction")
    shard_timeout_s: PositiveFloat = Field(
        default=3600.0, description="a shard that takes longer is retried elsewhere; seconds"
    )
    filters: FiltersConfig = FiltersConfig()

    @model_validator(mode="after")
    def _sizes(self) -> "PairsConfig":
        if self.resolution % 16:
            raise ValueError(f"pairs.resolution = {self.resolution} is not a multiple of 16")
        if self.min_workers > self.max_workers:
            raise ValueError("pairs.min_workers is above pairs.max_workers: lower the first or raise the second")
        return self


class NetsConfig(_Section):
    """Generator and discriminator."""

    width: Positive = Field(default=64, description="channels of the first layer; E2GAN: 64")
    text_tokens: Positive = Field(default=24, description="prompt tokens the Transformer block attends to")
    heads: Positive = Field(default=4, description="attention heads of the Transformer block")
    upsample: Literal["nearest", "bilinear", "shuffle"] = Field(
        default="shuffle", description="up-sampling, see docs/base.md"
    )
    output: Literal["direct", "residual", "mapped"] = Field(
        default="mapped",
        description="image from features alone, photo + change, or change on a prompt-driven colour map of the photo",
    )
    modulate: bool = Field(default=True, description="prompt also scales and shifts the features of the last layers")
    disc_width: Positive = Field(default=64, description="channels of the discriminator's first layer; pix2pix: 64")
    disc_scales: Positive = Field(default=1, description="discriminators at this many scales (pix2pixHD 3.2)")
    spectral_norm: bool = Field(default=False, description="spectral norm in the discriminator (Miyato et al. 2018)")


class LossConfig(_Section):
    """Weights of the training losses."""

    gan: Literal["hinge", "lsgan", "nonsaturating"] = Field(default="hinge", description="adversarial loss")
    gan_weight: NonNegativeFloat = Field(default=1.0, description="weight of the adversarial loss")
    l1_weight: NonNegativeFloat = Field(default=100.0, description="weight of L1; pix2pix 3.1: 100")
    lpips_weight: NonNegativeFloat = Field(default=0.0, description="weight of the perceptual loss, 0 = off")
    r1_weight: NonNegativeFloat = Field(
        default=0.0, description="weight of the R1 penalty (Mescheder et al. 2018), 0 = off"
    )
    r1_interval: Positive = Field(default=16, description="steps between lazy R1 penalties (StyleGAN2 B)")


class TrainConfig(_Section):
    """One training: the base, an adapter, or a baseline."""

    images: Positive = Field(description="training images seen in all; the unit of progress")
    batch_size: Positive = Field(default=8, description="images per optimizer step over all workers")
    accumulate: Positive = Field(default=1, description="gradient accumulation: the batch is cut into this many parts")
    lr: PositiveFloat = Field(default=2e-4, description="Adam learning rate of the generator; pix2pix: 2e-4")
    lr_disc: PositiveFloat = Field(default=2e-4, description="Adam learning rate of the discriminator")
    beta1: Fraction = Field(default=0.5, description="Adam beta 1; pix2pix: 0.5")
    beta2: Fraction = Field(default=0.999, description="Adam beta 2")
    decay_from: Fraction = Field(
        default=0.5, description="share of training after which the rate falls linearly to 0; pix2pix: 0.5"
    )
    ema_images: NonNegative = Field(
        default=500, description="half-life of the weights' moving average, images; 0 = off"
    )
    ema_interval: Positive = Field(default=4, description="steps between updates of the moving average")
    disc_interval: Positive = Field(default=1, description="generator steps per discriminator step")
    augment: Literal["none", "diffaug"] = Field(
        default="none", description="differentiable augmentation for little data (Zhao et al. 2020)"
    )
    flip: bool = Field(default=True, description="mirror half of the pairs")
    amp: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="mixed precision: `auto` is bfloat16 where the hardware multiplies it itself"
    )
    channels_last: bool = Field(default=False, description="NHWC memory layout")
    compile: bool = Field(default=False, description="torch.compile both networks")
    collapse_steps: Positive = Field(
        default=200, description="steps with a discriminator loss near 0 after which collapse is flagged"
    )
    checkpoint_images: Positive = Field(default=2000, description="images between checkpoints")
    eval_images: Positive = Field(default=2000, description="images between evaluations on held-out photos")
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _sizes(self) -> "TrainConfig":
        if self.batch_size % self.accumulate:
            raise ValueError("accumulate must divide batch_size: change one of them")
        return self


class BaseConfig(_Section):
    """Pre-training of the base GAN on Ray Train."""

    train: TrainConfig = TrainConfig(images=200_000)
    start_from: str = Field(
        default="random",
        pattern=r"^(random|bundled|[0-9a-f]{12})$",
        description="weights to start from: `random`, `bundled`, or a base_id of this storage",
    )
    num_workers: Positive = Field(default=1, description="Ray Train workers")
    worker_cpus: PositiveFloat = Field(default=1.0, description="CPUs per worker")
    worker_gpus: NonNegativeFloat = Field(default=0.0, description="GPUs per worker")
    max_failures: NonNegative = Field(default=3, description="lost workers after which the run stops (resumable)")
    keep_checkpoints: Positive = Field(default=2, description="latest checkpoints kept")


class SearchConfig(_Section):
    """LoRA adaptation: crucial layers, rank ladder, data ladder on Ray Tune."""

    # L1 with a perceptual term in place of a discriminator: docs/adapt.md has the figures.
    train: TrainConfig = TrainConfig(images=4_000, lr=2e-3, ema_images=250, loss=LossConfig(lpips_weight=20.0))
    metric: Literal["lpips", "kid", "l1"] = Field(
        default="lpips",
        description="metric that decides rungs, lower is better, on held-out photos; kid needs 100+ of them",
    )
    mode: Literal["ladder", "fixed", "grid"] = Field(
        default="ladder", description="ladder as in E2GAN 3.3, fixed rank and size, or all pairs of both"
    )
    order: Literal["rank-first", "data-first", "joint"] = Field(
        default="data-first", description="which ladder is climbed first; joint = both in step"
    )
    climb: Literal["up", "target"] = Field(
        default="up",
        description="first ladder: up from the smallest rung while it gains, or towards the largest as a target",
    )
    discriminator: Literal["none", "frozen", "last", "all"] = Field(
        default="none",
        description="what is trained of the base's discriminator per concept; none = no adversarial loss",
    )
    trial_images: Literal["fixed", "per-pair"] = Field(
        default="fixed",
        description="each trial sees `train.images`, or a share of it by its data rung (equal epochs, as E2GAN)",
    )
    eval_photos: Positive = Field(default=64, description="held-out photos a trial is measured on, at most")
    probe_concepts: Positive = Field(default=2, description="concepts of the crucial-layer analysis")
    probe_images: Positive = Field(default=800, description="training images per probe")
    probe_mode: Literal["alone", "without"] = Field(
        default="alone", description="a probe adapts one part alone, or all parts but one (as E2GAN)"
    )
    keep_parts: Fraction = Field(
        default=0.9, description="parts are adapted, best first, until they hold this share of the gain"
    )
    crucial_parts: list[str] | None = Field(
        default=None, description="adapted parts; empty = from the layer analysis of this base"
    )
    start_rank: Positive = Field(
        default=1, description="rank given to the least of the adapted layers on the first rung"
    )
    rank_multipliers: list[Positive] = Field(default=[1, 2, 4], min_length=1, description="rungs of the rank ladder")
    data_sizes: list[Positive] = Field(
        default=[50, 100, 200, 400],
        min_length=1,
        description="rungs of the data ladder, pairs; more than there are is cut",
    )
    subset: Literal["cluster", "random"] = Field(
        default="cluster", description="how a data rung's pairs are chosen (E2GAN 3.4)"
    )
    tolerance: Fraction = Field(
        default=0.02,
        description="relative: a rung must be this much better to count; the pick is the smallest within it",
    )
    rank_screen: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25,
        description="rank rungs are compared after this share of the training, only the pick is trained to its end;"
        " 1 = all to their end",
    )
    data_screen: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="the same for data rungs: too few pairs show later than too small ranks"
    )
    early_stop_fraction: Fraction = Field(
        default=0.25,
        description="share of a trial after which a hopeless one is stopped, if both screens are 1; 0 = never",
    )
    early_stop_margin: NonNegativeFloat = Field(
        default=0.25, description="relative: worse than the best rung at the same point by this much = hopeless"
    )
    warm_start: bool = Field(default=False, description="start from the adapter of the nearest concept already trained")
    num_workers: Positive = Field(default=2, description="trials at once")
    worker_cpus: PositiveFloat = Field(default=0.9, description="CPUs per trial")
    worker_gpus: NonNegativeFloat = Field(default=0.0, description="GPUs per trial, may be a fraction")
    max_hours: PositiveFloat | None = Field(default=None, description="budget: no new trial starts after this; hours")
    seed_count: Positive = Field(default=1, description="seeds per rung; more tell noise from gain")


class PublishConfig(_Section):
    """Registry and exports."""

    channel: str = Field(default="latest", description="channel moved to a new version")
    formats: list[
        Literal[
            "onnx-adapter",
            "onnx-adapter-fp16",
            "required-inputs",
            "merged",
            "merged-fp16",
            "merged-int8",
            "ort",
            "coreml",
        ]
    ] = Field(default=["onnx-adapter", "required-inputs", "merged"], description="files made for devices")
    resolution: Positive | None = Field(
        default=None, description="fixed side of exported graphs, pixels; empty = any multiple of 16"
    )
    max_error: PositiveFloat = Field(
        default=2e-3, description="largest allowed difference torch against ONNX Runtime, fp32, in [-1, 1]"
    )
    licence: str = Field(default="not stated", description="licence written into the model card")
    sign_key: str | None = Field(default=None, description="PEM file of an Ed25519 private key that signs manifests")

    @model_validator(mode="after")
    def _values(self) -> "PublishConfig":
        check_name(self.channel, "publish.channel")
        if self.resolution is not None and self.resolution % 16:
            raise ValueError(f"publish.resolution = {self.resolution} is not a multiple of 16")
        return self


class RayConfig(_Section):
    """How Ray is reached."""

    address: str | None = Field(
        default=None, description="running cluster (`auto`, `ray://...`); empty = start one on this machine"
    )
    num_cpus: Positive | None = Field(default=None, description="CPUs of a Ray started here; empty = all")
    dashboard: bool = Field(default=False, description="start Ray's dashboard with a Ray started here")


class CostConfig(_Section):
    """Prices and throughputs for `e2gan plan`."""

    machine_per_hour: NonNegativeFloat = Field(
        default=0.40, description="price of one machine; currency units per hour"
    )
    storage_per_gb_month: NonNegativeFloat = Field(default=0.023, description="price of storage; currency units")
    currency: str = Field(default="USD", description="name of the currency unit")
    teacher_s_per_image: PositiveFloat | None = Field(
        default=None, description="measured seconds per edit; empty = table of this machine kind"
    )
    train_s_per_image: PositiveFloat | None = Field(
        default=None, description="measured seconds per training image; empty = table"
    )


class RunConfig(_Section):
    """A whole run. Fields of the top level."""

    name: str = Field(default="run", description="name of the batch in MLflow and the report; a-z, 0-9, -")
    storage: str = Field(default="runs/demo", description="folder or s3://bucket/prefix that holds everything")
    tracking: str | None = Field(
        default=None,
        description="MLflow URI; empty = `MLFLOW_TRACKING_URI`, else a sqlite file in the run folder (S3: runs/NAME)",
    )
    seed: NonNegative = Field(default=0, description="seed of everything")
    photos: PhotosConfig = PhotosConfig()
    concepts: ConceptsConfig = ConceptsConfig()
    teacher: TeacherConfig = TeacherConfig()
    pairs: PairsConfig = PairsConfig()
    nets: NetsConfig = NetsConfig()
    base: BaseConfig = BaseConfig()
    search: SearchConfig = SearchConfig()
    publish: PublishConfig = PublishConfig()
    ray: RayConfig = RayConfig()
    costs: CostConfig = CostConfig()

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return check_name(name, "name")

    @field_validator("storage", "tracking")
    @classmethod
    def _no_password(cls, address: str | None) -> str | None:
        if address is not None and has_password(address):
            raise ValueError(
                "storage and tracking are kept with the results and must not hold a password: use the environment "
                "(MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; AWS_* for storage)"
            )
        return address

    @model_validator(mode="after")
    def _cross(self) -> "RunConfig":
        if isinstance(self.concepts.new, list) and self.concepts.base:
            both = sorted(set(self.concepts.new) & set(self.concepts.base))
            if both:
                raise ValueError(
                    f"concepts.new and concepts.base both name {', '.join(both)}: remove it from one of them"
                )
        if self.base.start_from == "bundled" and (self.nets.width, self.nets.disc_width) != BUNDLED_BASE_WIDTHS:
            width, disc_width = BUNDLED_BASE_WIDTHS
            raise ValueError(
                f"base.start_from = bundled needs nets.width = {width} and nets.disc_width = {disc_width}, not "
                f"{self.nets.width} and {self.nets.disc_width}: set them so, or base.start_from to random"
            )
        if max(self.search.data_sizes) > self.pairs.pairs_per_concept:
            raise ValueError(
                f"search.data_sizes asks for {max(self.search.data_sizes)} pairs but pairs.pairs_per_concept is "
                f"{self.pairs.pairs_per_concept}: raise pairs.pairs_per_concept or lower search.data_sizes"
            )
        return self
