"""What the JSON files of runs and studies hold: types that msgspec compares a file with before
anything is used."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**31)]
Side = Annotated[int, Meta(ge=1, le=1 << 12)]
Epoch = Annotated[float, Meta(gt=0, le=1e9)]
Movement = Annotated[float, Meta(ge=0, le=1e30)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=10_000)]
Bits = Annotated[str, Meta(max_length=100_000_000)]  # mnas/storage/bits.py
Name = Annotated[str, Meta(min_length=1, max_length=10_000)]


class _Settings(Struct, kw_only=True, forbid_unknown_fields=True, tag_field="mode"):
    space: Name
    dataset: Name
    seed: Seed
    epochs: Positive
    batch_size: Count
    lr: Positive
    precision: Literal["fp32", "bf16"]
    augment: Literal["none", "shift", "crop_flip"]
    validate_every: Count
    limit_train: Count | None
    limit_test: Count | None
    threads: Count
    keep_memory: bool
    channels_last: bool
    device: Literal["cuda"] | None = None  # None: the CPU, as before there was a choice
    # Pixels a side that images are resized to; none where they are as they were read.
    resolution: Side | None = None
    # Of the file that declares a space of the user's own, which `space` names.
    space_sha256: Name | None = None
    processes: Annotated[int, Meta(ge=2, le=2**31)] | None = None  # None: one
    # Of the rule distilled. Runs of single_path have no settings of rules.
    teacher: Name | None = None
    teacher_sha256: Name | None = None
    temperature: Positive | None = None
    distill_weight: Share | None = None


class SupernetSettings(_Settings, kw_only=True, tag="supernet"):
    sampler: Literal["uniform", "fair"]
    execution: Literal["sliced", "masked"]
    bn: Literal["recalibrate", "stored"]
    policy: Literal["frozen", "torch"]
    paths_per_rank: Literal[True] | None = None
    watched: Annotated[list[Name], Meta(min_length=1)] | None = None
    group: Annotated[list[Name], Meta(min_length=1)] | None = None  # of a sub-supernet
    start: Name | None = None
    keep_checkpoints: Annotated[int, Meta(ge=2, le=2**31)] | None = None  # None: the last one
    rule: Literal[
        "single_path", "fair", "sandwich", "distilled", "path_dropout", "ranked", "dynamic"
    ] = "single_path"
    random_paths: Count | None = None
    drop: Share | None = None
    ghost: Count | None = None
    rank_weight: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    decay_smallest: Positive | None = None
    decay_largest: Positive | None = None
    momentum_groups: Count | None = None


class ScratchSettings(_Settings, kw_only=True, tag="scratch"):
    arch: Name
    start: Name | None
    rule: Literal["single_path", "distilled"] = "single_path"


Settings = SupernetSettings | ScratchSettings
"""Of a run, as `tools/train.py` writes them into config.json."""


class DataFound(Struct, forbid_unknown_fields=True):
    """The data of a run. verified: whether their content is known to be that of the published
    set."""

    verified: bool
    sha256: str


class Config(Struct):
    """config.json, as far as every run has it."""

    data: DataFound | None
    environment: dict[str, Any]


class Times(Struct, forbid_unknown_fields=True):
    train_seconds: Seconds
    started: Name | None = None  # ISO 8601, UTC


class Metrics(Struct, forbid_unknown_fields=True):
    """A network after an epoch."""

    epoch: Epoch
    step: Count
    arch: Name
    updates: Number
    train_loss: float | None
    val_top1: Share
    val_loss: float | None


class Result(Struct, kw_only=True, forbid_unknown_fields=True):
    """A network at the end of a run."""

    arch: Name
    val_top1: Share
    test_top1: Share
    test_loss: float | None
    params: Number
    macs: Number
    correct: Bits | None = None  # which test images, in runs since 26 November 2026


class Summary(Struct, forbid_unknown_fields=True):
    mode: Literal["supernet", "scratch"]
    space: Name
    dataset: Name
    seed: Seed
    train_seconds: Seconds
    paths: Annotated[list[Result], Meta(min_length=1)]
    steps: Count | None = None


class StudyRow(Result, kw_only=True, forbid_unknown_fields=True):
    """A network of a run of a study. variant: the arm, if it is none of the two that every study
    has."""

    kind: Literal["supernet", "scratch"]
    seed: Seed
    steps: Count
    seconds: Seconds
    images: Count
    variant: Name | None = None
    # Rows since 26 November 2026: the commit that the run was begun with, whether the code differed
    # from it, when (ISO 8601, UTC), and the threads.
    commit: Name | None = None
    dirty: bool | None = None
    started: Name | None = None
    threads: Count | None = None


class CurveRow(Struct, forbid_unknown_fields=True):
    kind: Literal["supernet", "scratch"]
    seed: Seed
    arch: Name
    epoch: Epoch
    val_top1: Share


class DriftRow(Struct, forbid_unknown_fields=True):
    policy: Literal["frozen", "torch"]
    seed: Seed
    step: Count
    active: Movement
    inactive: Movement


class FailedRun(Struct, forbid_unknown_fields=True):
    run: Name
    arm: Name
    seed: Seed
    reason: str


class Variant(Struct):
    """How an arm is trained, as far as reports ask. after: the arm that it begins with. step_cost:
    of a step, in steps of a single path."""

    after: Name | None
    step_cost: Positive = 1.0


class Machine(Struct):
    """Where a study was trained, as far as reports ask; some systems name no processor."""

    processor: Text
    cores: Count | None
    torch: Name


class AboutStudy(Struct, kw_only=True):
    """study.json: how the rows were made, and which runs failed."""

    space: Name
    dataset: Name
    recipe: Name
    seeds: Count
    variants: bool
    rules: list[Name] = []
    epochs: Positive | None = None
    truth: Name | None = None
    networks: Count
    seed: Seed
    limit_train: Count | None
    limit_test: Count | None
    drawn: bool
    test_images: Count
    failed: list[FailedRun]
    arms: dict[str, Variant]
    environment: Machine


STUDY_ROWS: dict[str, type] = {
    "rows": StudyRow,
    "variants": StudyRow,
    "curves": CurveRow,
    "drift": DriftRow,
}
"""The files of rows of a study, NAME.jsonl."""
