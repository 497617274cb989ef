"""The sections of a recipe: every key with its type, default and meaning. Knows no files. Imports no torch."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_REGISTERED = re.compile(
    r"(?:(?:pretrain_videomae|pretrain_mae|mvd_vit|vit)_(tiny|small|base|large|huge|giant)"
    r"|(internvideo2_(?:small|base|large)))_patch(\d+)_(\d+)"
)
_PATCH_14 = ("giant", "internvideo2_small", "internvideo2_base", "internvideo2_large")


class Section(BaseModel):
    """Base of every section: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class About(Section):
    source: str = Field("", description="script or paper the values come from")
    published: str = Field("", description="number the authors report with it")
    gpus: int = Field(0, ge=0, description="devices of the published run; 0 = not known")
    note: str = ""


class ModelConfig(Section):
    arch: str = Field("vit_base", description="also by the name in the originals' registries: vit_base_patch16_224")
    init: str = Field("", description="weights to start from: a file or folder of any known family; empty = random")
    init_family: str = Field("auto", description="the family of model.init; auto = by its tensor names")
    final_norm: Literal["family", "simple_tad", "ava"] = Field(
        "family", description="what becomes of the norm behind the encoder of a pre-training file (docs/checkpoints.md)"
    )
    head_map: str = Field("", description="file: for each class, the class of model.init's head it starts from")
    fresh_decoder: bool = Field(
        False, description="pretrain: of model.init the encoder alone; it may be a file of any task and family"
    )
    freeze_blocks: int = Field(
        0, ge=0, description="the patch embedding and the first n blocks, save their norms, rest"
    )
    linear_probe: bool = Field(False, description="train the head alone")
    num_classes: int = Field(0, ge=0)
    dim: int = Field(0, ge=0, description="width; 0 = the architecture's own, as in the next four")
    depth: int = Field(0, ge=0, description="blocks")
    heads: int = Field(0, ge=0, description="attention heads")
    patch: int = Field(0, ge=0, description="pixels of a patch's side")
    mlp_hidden: int = Field(0, ge=0, description="width within an MLP")
    tubelet: int = Field(2, ge=1)
    positions: Literal["sincos_flat", "sincos_separable", "sincos_umt", "learned", "learned_separate"] = "sincos_flat"
    gelu: Literal["erf", "tanh"] = "erf"
    drop_path: float = Field(0.0, ge=0, lt=1)
    head_drop: float = Field(0.0, ge=0, lt=1)
    head_init_scale: float = Field(0.001, gt=0)
    attention: Literal["auto", "flash_attn", "sdpa", "math"] = "auto"
    decoder: Literal["videomae", "videomaev2"] = "videomae"
    decoder_dim: int = Field(0, ge=0, description="0 = the size's own")
    decoder_depth: int = Field(0, ge=0, description="0 = the size's own")
    decoder_heads: int = Field(0, ge=0, description="0 = the size's own")
    pool_heads: int = Field(16, ge=1, description="attention heads of InternVideo2's pooling")
    pool_dim: int = Field(768, ge=1, description="width of InternVideo2's pooled features")
    compile: bool = False
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        "default", description="torch.compile's mode; the second and third use CUDA graphs (never run on a GPU)"
    )

    @field_validator("arch")
    @classmethod
    def _own_name(cls, value: str) -> str:
        """The name here of a model in the registries of VideoMAE, VideoMAE V2, MVD and simple-tad."""
        registered = _REGISTERED.fullmatch(value)
        if registered is None:
            return value
        size, other, patch, pixels = registered.groups()
        own, expected = other or f"vit_{size}", 14 if (other or size) in _PATCH_14 else 16
        if int(patch) != expected:
            raise ValueError(f"{own}, whose patches are of {expected} pixels; others with model.patch={patch}")
        if int(pixels) != 224:
            raise ValueError(f"{own}; the size of a frame is data.input_size={pixels}")
        return own


class AugmentConfig(Section):
    policy: str = Field("", description="timm's RandAugment string, as rand-m7-n4-mstd0.5-inc1; empty = none")
    crop_area: tuple[float, float] = Field((0.08, 1.0), description="random_resized: share of the frame")
    crop_aspect: tuple[float, float] = Field((0.75, 1.3333), description="random_resized: width / height")
    erase_prob: float = Field(0.0, ge=0, le=1, description="random erasing: one box of noise for all frames")
    erase_area: tuple[float, float] = (0.02, 0.3333)
    erase_aspect: float = Field(0.3, gt=0, le=1, description="aspect from this to its inverse")
    erase_count: int = Field(1, ge=1)
    mixup: float = Field(0.0, ge=0, description="alpha of the Beta law; 0 = no mixup")
    cutmix: float = Field(0.0, ge=0, description="alpha of the Beta law; 0 = no cutmix")
    cutmix_minmax: tuple[float, float] | None = Field(None, description="sides of the box as shares, instead of alpha")
    mix_prob: float = Field(1.0, ge=0, le=1, description="share of the pairs that are mixed")
    cutmix_share: float = Field(0.5, ge=0, le=1, description="cutmix among the mixed pairs, where both are on")

    @property
    def mixes(self) -> bool:
        """Whether any pair of clips is mixed."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)


class DataConfig(Section):
    train: str = "builtin"
    val: str = ""
    test: str = ""
    labels: str = Field("", description="file with the names of the classes, one a line, from class 0 on")
    root: str = Field("", description="folder that relative paths of a list start from; empty = the list's own folder")
    num_frames: int = Field(16, ge=1)
    sampling_rate: int = Field(4, ge=1, description="distance of two sampled frames, in frames of the file")
    view_fps: float | None = Field(None, gt=0)
    sampling: Literal["stride", "dense", "segment"] = Field(
        "stride", description="stride: pre-training, frames at one distance; dense and segment: fine-tuning rules"
    )
    input_size: int = Field(224, ge=1)
    short_side: int = Field(0, ge=0, description="the short side becomes this; 0: not in training, input_size in tests")
    crop: Literal["multi_scale", "random_resized", "random", "center"] = "multi_scale"
    augment: AugmentConfig = AugmentConfig()
    flip: float = Field(0.0, ge=0, le=1)
    num_sample: int = Field(1, ge=1, description="clips cut from one decoded video (repeated augmentation)")
    num_workers: int = Field(4, ge=0)
    prefetch: int = Field(2, ge=1)
    cache_mb: int = Field(0, ge=0, description="decoded frames of short videos that each loader process keeps, in MB")
    clip_limit_s: float = Field(
        60.0, ge=0, description="a loader process that reads one video for longer is killed; 0 = never"
    )
    recycle_mb: int = Field(1024, ge=0, description="a loader process that has grown by more is replaced; 0 = never")
    recycle_clips: int = Field(0, ge=0, description="a loader process is replaced after so many videos; 0 = never")
    decoder: Literal["auto", "decord", "pyav", "torchcodec", "torchcodec_cuda"] = Field(
        "auto", description="torchcodec_cuda: the GPU's video decoder, NVDEC (never run on one)"
    )
    jpeg_decoder: Literal["cpu", "gpu"] = Field(
        "cpu", description="gpu: training clips of packed shards are decoded and cropped on the GPU (never run on one)"
    )
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    bad_grace: int = Field(10, ge=0, description="this many unreadable clips never stop a run")
    train_limit: int = Field(0, ge=0, description="use only the first n entries of the training list; 0 = all")
    frame_name: str = "img_{:05}.jpg"
    frame_start: int = Field(1, ge=0)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class PretrainConfig(Section):
    mask_ratio: float = 0.9
    decoder_mask_ratio: float = Field(0.0, description="0 = VideoMAE, 0.5 = VideoMAE V2 dual masking")
    norm_pix: bool = True


class FootageSource(Section):
    index: str = Field("", description="file of `dsvid traffic index`, or builtin; empty = no such source")
    root: str = Field("", description="folder of its clips; empty = the index file's")
    rate: int = Field(1, ge=1, description="from one window's last frame to the next, in frames of the source")
    share: float = Field(1.0, gt=0, description="part of every batch, against the other source's")


class FootageConfig(Section):
    first: FootageSource = FootageSource()
    second: FootageSource = FootageSource()
    with_start: bool = Field(True, description="one more window at a clip's start, where the first begins late")
    nearest: bool = Field(False, description="a frame rate that data.view_fps does not divide: the nearest frames")
    aligned: bool = Field(False, description="simple-tad's augmentation, aligned with its fine-tuning")


class ClassifyConfig(Section):
    label_smoothing: float = Field(0.1, ge=0, lt=1)


class DetectFiles(Section):
    truth: str = Field("", description="ground-truth csv; empty = the boxes of the annotations")
    people: str = Field("", description="person boxes, json or csv; empty = the annotated boxes, with score 1")
    excluded: str = Field("", description="csv of key frames that do not count; empty = none")


SeedFault = Literal["swapped_sides", "cut_boxes", "batch_padding"]


class DetectConfig(Section):
    clips: str = Field("clips/trainval", description="folder of <video>/<second>.mp4, or of whole videos")
    start_s: float = Field(0.0, ge=0, description="second of the first frame of whole videos")
    video_list: str = Field("", description="names of the videos, whose places number images; for annotations as csv")
    seconds: str = Field("902-1798", description="key frames of every video, for annotations as csv")
    classes: tuple[int, ...] = Field((), description="class numbers that count, each a column; empty = 1, 2, 3, …")
    person_score: float = Field(0.8, ge=0, le=1, description="person boxes below it are left out")
    max_boxes: int = Field(100, ge=1, description="most boxes of a training clip")
    colour: bool = Field(True, description="colour jitter in training")
    exclude_training: str = Field("", description="csv of key frames that are not trained on; the seed trains on all")
    loss_clips: float = Field(
        0.0,
        ge=0,
        description="clips a GPU of the published run, whose loss grew with them; 0 = those of the micro-batch",
    )
    seed_faults: tuple[SeedFault, ...] = Field((), description="faults of the original code to have back (docs/ava.md)")
    protocol: Literal["seed", "official", "mmaction2"] = "seed"
    val: DetectFiles = DetectFiles()
    test: DetectFiles = DetectFiles()


class AnomalyConfig(Section):
    layout: Literal["dota", "dada"] = "dota"
    loss: Literal["crossentropy", "focal", "focal6x100", "focal2_2", "focal2_6", "smoothap", "2bce", "exponential1"] = (
        "crossentropy"
    )
    class_weights: tuple[float, float] = Field((1.0, 1.0), description="of safe and anomaly, in crossentropy")
    eval_rate: int = Field(0, ge=0, description="data.sampling_rate of evaluations; 0 = 1, every frame is a target")
    padding: Literal["none", "repeat"] = Field(
        "none", description="evaluation: repeat shows the first frame again, so that a clip's first frames count too"
    )
    nearest: bool = Field(False, description="a frame rate that data.view_fps does not divide: the nearest frames")
    driving: bool = Field(True, description="training: borders of twelve kinds around the frame, before the squash")


class OptimConfig(Section):
    base_lr: float = Field(1.5e-4, gt=0)
    min_lr: float = Field(1e-5, ge=0, description="scaled like base_lr")
    lr_scale_batch: int = Field(256, ge=1)
    warmup_epochs: float = Field(40, ge=0)
    warmup_steps: int = Field(0, ge=0, description="instead of warmup_epochs, where it is not 0")
    weight_decay: float = Field(0.05, ge=0)
    weight_decay_end: float | None = Field(
        None, ge=0, description="half a cosine from weight_decay to this; null = none"
    )
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    clip_grad: float = Field(0.0, ge=0, description="0 = no clipping")
    layer_decay: float = Field(1.0, gt=0, le=1)
    ema_decay: float = Field(0.0, ge=0, lt=1, description="exponential moving average of the weights; 0 = none")


class BatchConfig(Section):
    total: int = Field(256, ge=1, description="clips per optimizer step over all ranks")
    micro: int = Field(0, ge=0, description="clips per rank per forward; 0 = total / ranks, within micro_limit")
    micro_limit: int = Field(0, ge=0, description="most clips per rank per forward where micro is 0; 0 = no limit")


class EvalConfig(Section):
    every_epochs: int = Field(0, ge=0, description="evaluate on data.val every n epochs; 0 = never")
    segments: int = Field(1, ge=1)
    crops: int = Field(1, ge=1)
    batch: int = Field(16, ge=1, description="views per rank per forward")
    merge: Literal["prob", "score"] = Field("prob", description="what is averaged over the views of a video")


def duration_s(text: str) -> float:
    """Seconds of `1d2h`, `23h30m`, `90m`, `45s` or a plain number of seconds; 0 of an empty text.

    Raises ValueError for anything else.
    """
    if not text:
        return 0.0
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if found is None:
        raise ValueError(f"{text!r} is not a time; write 23h30m, 90m, 45s or seconds")
    return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True))


class RunConfig(Section):
    epochs: int = Field(800, ge=1)
    samples_per_epoch: int = Field(0, ge=0, description="clips that make an epoch; 0 = the whole list")
    stop_epoch: int = Field(0, ge=0, description="stop after this epoch without changing the schedule; 0 = run.epochs")
    max_steps: int = Field(0, ge=0, description="stop after this step without changing the schedule; 0 = no limit")
    seed: int = 0
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=0, description="steps; 0 = at the end only")
    keep: int = Field(2, ge=1, description="newest checkpoints that stay on disk")
    keep_every: int = Field(0, ge=0, description="checkpoints of every such step stay for good; 0 = none")
    bad_steps: int = Field(3, ge=0, description="steps in a row without finite numbers that send the run back, once")
    spike_factor: float = Field(10.0, ge=0, description="a loss this many times the usual is an alarm; 0 = no alarm")
    spike_back: bool = Field(False, description="such a loss sends the run back too")
    images_every: int = Field(0, ge=0, description="steps between reconstruction pictures; 0 = at the end only")
    max_time: str = Field("", description="save and stop after this wall time, as 23h30m, 90m or seconds; empty = none")
    watchdog_s: float = Field(1200, ge=0, description="end the run where nothing moves for so long; 0 = never")
    save_timeout_s: float = Field(7200, gt=0, description="the same for saving, loading and the start")

    @field_validator("max_time", mode="before")
    @classmethod
    def _readable_time(cls, value: object) -> str:
        text = str(value).strip()
        duration_s(text)
        return text

    @property
    def max_time_s(self) -> float:
        """Seconds of max_time; 0 = none."""
        return duration_s(self.max_time)


class Recipe(Section):
    about: About = About()
    task: Literal["pretrain", "classify", "detect", "anomaly"] = "pretrain"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pretrain: PretrainConfig = PretrainConfig()
    footage: FootageConfig = FootageConfig()
    classify: ClassifyConfig = ClassifyConfig()
    detect: DetectConfig = DetectConfig()
    anomaly: AnomalyConfig = AnomalyConfig()
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()
