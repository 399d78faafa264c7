"""Every setting, with its default, unit and reason.

Recipes (``hvdyolo/recipes/*.yaml``) hold differences from these defaults; ``--section.key VALUE`` on the
command line changes single values. A component is given its own section only.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    description: str = "yolov5s"
    """Name of a shipped network (docs/models.md lists them) or path of a YOLOv5 YAML file."""
    weights: str | None = None
    """Weights to start from, safetensors or a published .pt; what has the same name and shape is taken.
    Random weights if none."""
    freeze: str | None = None
    """What is held fixed, norms' statistics included: rows (`0-9, 12`), `backbone`, `neck`, `head`, patterns
    of names (`*.bn.*`), with commas between them. Where there are `weights`, only what they fill can be."""
    auto_anchor: bool = True
    """Fit the anchors to the training boxes before the first epoch, where those that there are take 98 % of
    the boxes or less (`loss.anchor_threshold`) and fitted ones take more. A description that gives no anchors
    has them fitted in any case."""


@dataclass(frozen=True)
class LoaderConfig:
    """How samples reach the training process."""

    image_size: int = 640
    """Side of the square network input, pixels; a multiple of the largest stride."""
    order: Literal["exact", "block"] = "exact"
    """`exact` permutes all samples; `block` lets each slot of the batch read runs of 32 neighbours, mosaics
    included, for storage that is slow at random access. It is for splits of hundreds of images a slot."""
    workers: int | None = None
    """Loader processes a rank; by default its share of the host's cores, at most 8. 0 loads in the rank."""
    prefetch: int = 2
    """Batches each worker keeps ready; on GPUs, as many again in memory that is pinned."""
    verify: bool = True
    """Check each sample's checksum as it is read: about 2 microseconds for a 110 KB image."""
    max_pixels: int = 64_000_000
    """Images with more pixels are refused from their header: a few bytes can ask for gigabytes."""
    stage: str | None = None
    """Directory on the node, such as /dev/shm or NVMe, to copy the shards to, once a node, before they are
    read. The copies stay for the next job. A node may wait `watchdog.start_timeout` for a slower one."""
    damaged: Literal["raise", "skip"] = "raise"
    """A damaged sample in training ends the job, or its slot becomes grey, with weight 0. Evaluation always
    ends the job: a score of other images is another score."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images; strengths as in YOLOv5's `low` preset."""

    mosaic: float = 1.0
    """Probability that a sample is several images around a random centre."""
    mosaic_9: float = 0.0
    """Share of these that are nine images instead of four."""
    degrees: float = 0.0
    """Rotation, plus or minus, degrees."""
    translate: float = 0.1
    """Shift, plus or minus, as a fraction of the image size."""
    scale: float = 0.5
    """Zoom by a factor in 1 - scale … 1 + scale."""
    shear: float = 0.0
    """Shear, plus or minus, degrees."""
    perspective: float = 0.0
    """Change of scale from the middle of the output to its edges, plus or minus, as a fraction."""
    mixup: float = 0.0
    """Probability that a second sample is blended in, with a share drawn from Beta(32, 32)."""
    copy_paste: float = 0.0
    """Probability of each object with polygons to be pasted once more, mirrored in its image, where that
    leaves more than 70 % of every box uncovered. The data must be packed with `--polygons`."""
    autoaugment: Literal["v0", "v1", "v2", "v3"] | None = None
    """Policy of AutoAugment for detection (arXiv 1906.11172)."""
    cutout: float = 0.0
    """Probability of 1 to 8 patches of random colour, with sides of 5 to 25 % of the output. Boxes that they
    cover by more than 60 % are dropped."""
    multi_scale: float = 0.0
    """Each optimizer step has its own input size, the same on all ranks: `loader.image_size` plus or minus up
    to this fraction, in multiples of the largest stride."""
    hue: float = 0.015
    """Hue gain, plus or minus, as a fraction."""
    saturation: float = 0.7
    """Saturation gain, plus or minus, as a fraction."""
    value: float = 0.4
    """Brightness gain, plus or minus, as a fraction."""
    flip_left_right: float = 0.5
    """Probability of a mirror image."""
    flip_up_down: float = 0.0
    """Probability of an image upside down."""
    partners: Literal["any", "recent"] = "any"
    """A mosaic's other images are any of the split, or of the last 8 that its slot of the batch held: a third
    of the decoding, at 1.2 MB of memory (640 pixels) for each of 8 images a slot."""
    resampling: Literal["triangle", "bilinear", "exact"] = "triangle"
    """`triangle` resamples each image once and anti-aliased, `bilinear` once and without, in a quarter of
    the time; `exact` warps a canvas as published. The last two need OpenCV, `bilinear` a C compiler
    when hvdyolo is installed too."""
    decoding: Literal["fine", "coarse"] = "fine"
    """`coarse` decodes JPEGs by a transform with fewer digits and does not interpolate colours of half the
    resolution: 10 to 18 % of the decoding less, pixels of photographs differ by 1.2 of 255 on average."""
    colours: Literal["auto", "device", "workers"] = "auto"
    """Where colours are changed and images mirrored: on the batch where the network is, or in the loader's
    workers, by compiled functions, which is faster where the network is on a CPU: `auto` does so there. The
    two differ by rounding, a quarter of a step of 255 on average."""


@dataclass(frozen=True)
class LossConfig:
    """The objective; gains as YOLOv5 publishes them, before scaling to levels, classes and size."""

    box: float = 0.05
    """Gain of the box term."""
    objectness: float = 1.0
    """Gain of the objectness term."""
    classification: float = 0.5
    """Gain of the class term."""
    anchor_threshold: float = 4.0
    """An anchor takes a box if neither side differs by this factor or more."""
    label_smoothing: float = 0.0
    """Class targets are 1 - s/2 and s/2."""
    positive_objectness: float = 1.0
    """Weight of positive targets in the objectness term."""
    positive_class: float = 1.0
    """Weight of positive targets in the class term."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss (arXiv 1708.02002), in the objectness and class terms; 0 is plain cross
    entropy. The paper has 2, with the balance 0.25 that goes with it here too."""
    class_weights: str | None = None
    """Weight of each class in the class term: by the `inverse` or `inverse_sqrt` of its boxes in the training
    split, or a number a class with commas between them. Their mean over classes is brought to 1."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its warm-up and its schedule.

    Values are for steps of `nominal_batch` images; for larger batches one rule changes them, which
    docs/training.md explains.
    """

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    """`sgd` with Nesterov momentum, `adamw` or, for thousands of images a step, `lars`."""
    lr: float = 0.01
    """Learning rate after warm-up. A tenth of it suits `adamw`."""
    lr_final: float = 0.01
    """Last learning rate, as a fraction of `lr`."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Shape of the fall between the two."""
    lr_factors: str | None = None
    """Parts that learn at a multiple of `lr`, warm-up included, such as `backbone=0.1, head=2`. Parts are
    named as in `model.freeze`; of several for one parameter the last counts."""
    momentum: float = 0.937
    """Momentum after warm-up: Nesterov's for `sgd`, beta 1 of `adamw`, whose beta 2 is 0.999."""
    weight_decay: float = 5e-4
    """Decay of weight matrices; biases and normalisation are not decayed. That of `adamw` does not go through
    the gradient: 0.05 is for it what this is for the others."""
    trust_coefficient: float = 0.1
    """Of `lars`: a step changes a weight matrix by this share of its norm, times `lr`. Biases and
    normalisation move as by `sgd`."""
    warmup_epochs: float = 3.0
    """Length of the warm-up, epochs."""
    warmup_min_batches: int = 100
    """The warm-up lasts at least this many batches: small sets have short epochs. With batches above the
    nominal one, at most a fifth of the run."""
    warmup_bias_lr: float = 0.1
    """Learning rate of biases at the first batch; it falls to `lr`. With `adamw` they begin at 0 like all
    else."""
    warmup_momentum: float = 0.8
    """Momentum at the first batch."""
    nominal_batch: int = 64
    """Images of the optimizer steps that these settings are for. Smaller batches are accumulated up to it."""
    clip_norm: float = 10.0
    """Largest Euclidean norm of the whole gradient, which is the sum over a step's images."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights, an optimizer step, in the long run."""
    ema_ramp: float = 2000.0
    """Optimizer steps over which that decay is approached: d(n) = decay * (1 - exp(-n / ramp))."""


@dataclass(frozen=True)
class TrainConfig:
    """The length of training and what is kept of it."""

    epochs: int = 300
    """Passes over the training split."""
    batch: int = 64
    """Images a batch over all ranks together, so results do not depend on the number of ranks. At most
    those of the training split."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; preemption and the end always make one."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones go once a newer one verifies."""
    log_every: int = 10
    """Optimizer steps between log lines."""
    image_weighting: bool = False
    """Draw images with replacement, those with rare and badly found classes more often, instead of each once
    an epoch (docs/training_anchors.md)."""
    patience: int | None = None
    """Training ends after so many epochs without a better AP; by default never before `epochs`. It is looked
    at when there is an AP, so every `eval_every` epochs."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of convolutions and matrix products in training; weights, updates and the loss are fp32. `bf16` is
    1.4 times as fast on CPUs that know it (AVX-512 BF16, AMX), and takes half the memory on GPUs that do
    (Ampere and later). `fp16` is for GPUs without it, and scales the loss; on CPUs it works, slowly."""
    sync_batch_norm: bool = False
    """Batch norm over the images of all ranks instead of each rank's own: for few images a rank. Two small
    sums a norm and step; on CPUs the default of `distributed.cycle_time` becomes 1."""
    compile: bool = False
    """Let torch compile the network for training. It takes minutes at the start, on CPUs a C++ compiler too,
    and gives other last digits."""
    cuda_graphs: bool = False
    """Replay the network's kernels as CUDA graphs: for small networks or batches, whose kernels take less
    time than starting them. One size of the input only."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How predictions become the boxes that are scored by COCO's average precision."""

    image_size: int | None = None
    """Side of the network input, pixels; the weights' own size by default."""
    batch: int = 16
    """Images a forward pass on one rank."""
    rectangular: bool = False
    """Put images of like shapes into a batch and compute no more of the square than the batch needs, in
    multiples of the largest stride: a quarter less for photographs of 4:3 at 640 pixels."""
    confidence: float = 0.001
    """Boxes with a lower score are dropped before suppression."""
    iou: float = 0.6
    """A box overlapping a better one of its class by more is suppressed."""
    max_boxes: int = 300
    """Boxes kept for a picture."""


@dataclass(frozen=True)
class DetectConfig:
    """Batch detection."""

    image_size: int | None = None
    """Side of the network input, pixels; the weights' own size by default."""
    batch: int = 16
    """Images a forward pass; batches never cross chunks, so a part depends on its chunk only."""
    confidence: float = 0.25
    """Lowest score of a detection."""
    iou: float = 0.45
    """A box overlapping a better one of its class by more is suppressed."""
    max_boxes: int = 300
    """Boxes kept for a picture; a picture that had more is marked `capped`."""
    chunk: int = 256
    """Images a chunk: the unit of work, of restart and of output files."""
    pictures: int = 20
    """Pictures drawn with boxes and names, from the first images of the source."""
    max_pixels: int = 178_956_970
    """Larger images are recorded as errors from their header, undecoded."""
    claim_expiry: float = 60.0
    """Seconds after which a claim whose counter stands still belongs to nobody."""


@dataclass(frozen=True)
class DistributedConfig:
    """Horovod and threads."""

    cycle_time: float | None = None
    """Milliseconds between Horovod's looks for work. By default 20 on CPUs, where a short cycle takes the
    cores from the model, and 1 on GPUs."""
    compression: Literal["none", "fp16"] = "none"
    """`fp16` sends gradients over the network in half precision."""
    threads: int | None = None
    """Torch threads a rank; by default its share of the cores, those that several ranks may use divided, or
    one where the network is on a GPU. Detection has as many lanes, beside a GPU 4 at most."""


@dataclass(frozen=True)
class WatchdogConfig:
    """The job is ended, and the rank that is behind is named, when nothing moves."""

    timeout: float = 600.0
    """Seconds without progress of a rank that end the job."""
    start_timeout: float = 600.0
    """Seconds in which ranks must have found each other; a cold file system delays the first imports."""
    lock_expiry: float = 60.0
    """Seconds after which the lock of another host, its counter standing still, belongs to nobody."""


@dataclass(frozen=True)
class Config:
    """All sections; what `config.yaml` in a run directory holds."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
