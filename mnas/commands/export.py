"""Export one network of a run as plain PyTorch, model.py and weights.pt, or in another format, with
a verification on real test images in a process of its own.

- `mnas export --checkpoint runs/supernet-mil4-mnist-seed0 --arch conv3x3-conv5x5 --out exported`
- `cd exported && python -c "import model; print(model.load())"`: needs nothing but torch
- `mnas export ... --format onnx`: model.onnx, for onnxruntime (`pip install 'mnas[onnx]'`)

About 20 s. Ends with status 1, and leaves nothing behind, if what was written does not compute what
was trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App, Parameter

from mnas.commands.options import Count, Seed, UserPath
from mnas.errors import Failure, check_extra
from mnas.training import runtime
from mnas.training.saved import open_run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mnas.training.saved import SavedRun

# The sliced path runs the same kernels on the same numbers: no difference is allowed. The masked
# path sums the products of a larger kernel in another order: logits are of the order of 10, float32
# resolves them to 1e-6, and sums of a few thousand products err by tens of that.
TOLERANCE = {"sliced": 0.0, "masked": 1e-4}
# Other formats run on kernels of their own.
OTHERS = {"sliced": 1e-4, "masked": 1e-4}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    checkpoint: UserPath
    "Run directory of tools/train.py."
    arch: str
    "The network, as conv3x3-conv5x5; or random: one drawn by --seed."
    out: UserPath
    "Directory to write, new or empty."
    format: Literal["source", "safetensors", "torch-export", "onnx"] = "source"
    """Files to write: model.py with weights.pt or weights.safetensors; model.pt2, for
    torch.export.load; model.onnx."""
    space: str | None = None
    "Needed for a run with a space of your own: path/to/file.py:function, as it was trained with."
    bn: Literal["recalibrate", "stored"] | None = None
    "Running statistics: of 2,000 training images, or as stored. [default: as the run was scored]"
    seed: Seed = 0
    "For --arch random."
    data_root: UserPath = Path("data")
    "Where the data sets other than mnist are; of folder, the folder."
    limit_test: Count | None = None
    "Verify on the first N test images. [default: all]"
    threads: Count | None = None
    "Threads. [default: all cores]"


app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options) -> None:
    _check_out(options.out)
    if options.format == "onnx":
        check_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    if options.format == "safetensors":
        check_extra("safetensors", "safetensors")

    import mnas
    from mnas.networks.export import compact
    from mnas.networks.formats import FORMATS, run_fresh
    from mnas.networks.recalibrate import recalibrate
    from mnas.storage import files, strict_json
    from mnas.training.trainer import BN_IMAGES

    runtime.configure_runtime(options.threads or runtime.default_threads())
    run = open_run(options.checkpoint, options.space)
    run.say_if_unfinished()
    if options.arch == "all":
        raise Failure(
            "--arch all: one network is exported at a time; give a name or random", status=2
        )
    (arch,) = run.archs(options.arch, options.seed)
    dataset = run.config["dataset"]
    data = run.data(options.data_root)
    test = data.test.first(options.limit_test)
    images = data.train.images[:BN_IMAGES]
    bn = options.bn or run.config.get("bn", "stored")

    def trained(execution: str) -> nn.Module:
        network = run.network(arch, execution)
        return recalibrate(network, images) if bn == "recalibrate" else network

    price = mnas.cost(run.space, run.space.parse(arch))
    mode = run.config["mode"]
    network = compact(trained("sliced"))
    about_it = (
        f"{arch} of the search space {run.space.name}, trained on {dataset} ({mode}, seed "
        f"{run.config['seed']}).",
        f"Input: float32 (B, {', '.join(map(str, run.space.input_shape))}), pixels / 255, then "
        "each channel "
        "normalised\nto mean 0 and standard deviation 1 over the training images (MNIST: - 0.1307, "
        f"/ 0.3081).\nOutput: logits (B, {run.space.output_shape[0]}).\n"
        f"{price.params:,} parameters, {price.macs:,} multiply-accumulates an image. Exported by "
        "mnas.",
    )
    files_of = FORMATS[options.format].files
    allowed = TOLERANCE if options.format in ("source", "safetensors") else OTHERS
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=options.out.parent, prefix=f".{options.out.name}."
        ) as scratch:
            folder = Path(scratch) / "export"
            folder.mkdir()
            try:  # on two images, for one is a batch of a size of its own
                FORMATS[options.format].write(network, folder, data.test.images[:2], about_it)
            except ValueError as error:
                # Those with source need what it needs, the others all follow the network.
                source = "model.py" in files_of
                others = [n for n in FORMATS if ("model.py" in FORMATS[n].files) != source]
                other = " or ".join(others)
                raise Failure(f"{error}; or choose another --format: {other}", 2) from error
            versions = {n: files.Version.of((folder / n).read_bytes()) for n in files_of}
            about = {"arch": arch, "dataset": dataset, "bn": bn, "format": options.format}
            for what in ("bytes", "sha256"):
                about[what] = {name: getattr(version, what) for name, version in versions.items()}
            verification = folder / "verification.json"
            files.write_atomically(verification, strict_json.dumps(about))  # for the import below
            try:
                logits = run_fresh(options.format, folder, test.images)
            except RuntimeError as error:
                raise Failure(
                    f"what was written does not run ({error}); nothing was kept"
                ) from error
            report = _verify(logits, trained, _executions(run), test.images, test.labels, allowed)
            text = strict_json.dumps({**about, **report}, indent=2)
            files.write_atomically(verification, text + "\n")
            if not report["agrees"]:
                raise Failure(
                    f"the exported network disagrees with the trained one: {report}; nothing was "
                    "written"
                )
            if options.out.exists():
                options.out.rmdir()  # empty, or this fails
            folder.rename(options.out)
    except OSError as error:
        raise Failure(
            f"cannot write {options.out} ({error.strerror}); give --out a writable directory", 2
        ) from error
    for reference, difference in report["max_abs_difference"].items():
        print(
            f"largest difference to the {reference} network: {difference:.2e} (allowed: "
            f"{allowed[reference]:.0e})"
        )
    print(
        f"predictions agree on {report['images']} test images; test top-1 "
        f"{100 * report['test_top1']:.2f} %"
    )
    print(f"wrote {options.out}/{', '.join(files_of)} and verification.json")


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise Failure(f"{out} is a file; give --out a directory", status=2)
    if out.exists() and any(out.iterdir()):
        raise Failure(f"{out} is not empty; give --out a new directory", status=2)


def _executions(run: SavedRun) -> tuple[str, ...]:
    """Those in which the trained network can be run: both in a supernet, unless a mask changes what
    a candidate computes."""
    import mnas

    if run.config["mode"] != "supernet":
        return ("sliced",)
    try:
        mnas.Supernet(run.space, "masked")
    except ValueError as error:
        print(f"no masked reference: {error}")
        return ("sliced",)
    return "sliced", "masked"


def _verify(
    logits: Tensor,
    trained: Callable[[str], nn.Module],
    executions: tuple[str, ...],
    images: Tensor,
    labels: Tensor,
    allowed: dict[str, float],
) -> dict[str, Any]:
    """The exported network's logits against those of the trained one in these executions."""
    references = {execution: _logits(trained(execution), images) for execution in executions}
    differences = {
        e: float((logits - reference).abs().max()) for e, reference in references.items()
    }
    predictions_equal = all(
        bool((r.argmax(1) == logits.argmax(1)).all()) for r in references.values()
    )
    return {
        "images": len(labels),
        "max_abs_difference": differences,
        "tolerance": {execution: allowed[execution] for execution in executions},
        "predictions_equal": predictions_equal,
        "test_top1": float((logits.argmax(1) == labels).double().mean()),
        "agrees": predictions_equal and all(d <= allowed[e] for e, d in differences.items()),
    }


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return torch.cat([network(batch) for batch in images.split(500)])
