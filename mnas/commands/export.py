"""Export one network of a run as plain PyTorch: model.py, weights.pt and a verification on real
test images.

- `mnas export --checkpoint runs/supernet-mil4-mnist-seed0 --arch conv3x3-conv5x5 --out exported`
- `cd exported && python -c "import model; print(model.load())"`: needs nothing but torch

About 15 s. Ends with status 1, and leaves nothing behind, if what was written does not compute what
was trained."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App, Parameter

from mnas.commands.options import Count, Seed, UserPath
from mnas.errors import Failure, user_input
from mnas.training import runtime
from mnas.training.saved import open_run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mnas.training.saved import SavedRun

# The sliced path runs the same kernels on the same numbers: no difference is allowed. The masked
# path sums the products of a larger kernel in another order: logits are of the order of 10, float32
# resolves them to 1e-6, and sums of a few thousand products err by tens of that.
TOLERANCE = {"sliced": 0.0, "masked": 1e-4}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    checkpoint: UserPath
    "Run directory of tools/train.py."
    arch: str
    "The network, as conv3x3-conv5x5; or random: one drawn by --seed."
    out: UserPath
    "Directory to write, new or empty."
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

    import torch

    import mnas
    from mnas.networks.export import compact
    from mnas.networks.recalibrate import recalibrate
    from mnas.networks.source import source
    from mnas.storage import files, strict_json
    from mnas.training import data
    from mnas.training.trainer import BN_IMAGES

    runtime.configure_runtime(options.threads or runtime.default_threads())
    run = open_run(options.checkpoint)
    run.say_if_unfinished()
    if options.arch == "all":
        raise Failure(
            "--arch all: one network is exported at a time; give a name or random", status=2
        )
    (arch,) = run.archs(options.arch, options.seed)
    dataset = run.config["dataset"]
    with user_input():
        loaded = data.load(dataset, options.data_root, run.config.get("resolution"))
    test = loaded.test.first(options.limit_test)
    images = loaded.train.first(run.config.get("limit_train")).images[:BN_IMAGES]
    bn = options.bn or run.config.get("bn", "stored")

    def trained(execution: str) -> nn.Module:
        network = run.network(arch, execution)
        return recalibrate(network, images) if bn == "recalibrate" else network

    price = mnas.cost(run.space, run.space.parse(arch))
    mode = run.config["mode"]
    network = compact(trained("sliced"))
    text = source(
        network,
        f"{arch} of the search space {run.space.name}, trained on {dataset} ({mode}, seed "
        f"{run.config['seed']}).",
        f"Input: float32 (B, {', '.join(map(str, run.space.input_shape))}), pixels / 255, then "
        "each channel "
        "normalised\nto mean 0 and standard deviation 1 over the training images (MNIST: - 0.1307, "
        f"/ 0.3081).\nOutput: logits (B, {run.space.output_shape[0]}).\n"
        f"{price.params:,} parameters, {price.macs:,} multiply-accumulates an image. Exported by "
        "mnas.",
        verified=True,
    )
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=options.out.parent, prefix=f".{options.out.name}."
        ) as scratch:
            folder = Path(scratch) / "export"
            folder.mkdir()
            (folder / "model.py").write_text(text, encoding="utf-8", newline="\n")
            torch.save(network.state_dict(), folder / "weights.pt")
            versions = {
                n: files.Version.of((folder / n).read_bytes()) for n in ("model.py", "weights.pt")
            }
            about = {"arch": arch, "dataset": dataset, "bn": bn}
            for what in ("bytes", "sha256"):
                about[what] = {name: getattr(version, what) for name, version in versions.items()}
            verification = folder / "verification.json"
            files.write_atomically(verification, strict_json.dumps(about))  # for the import below
            report = _verify(
                _import_model(folder), trained, _executions(run), test.images, test.labels
            )
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
            f"{TOLERANCE[reference]:.0e})"
        )
    print(
        f"predictions agree on {report['images']} test images; test top-1 "
        f"{100 * report['test_top1']:.2f} %"
    )
    print(f"wrote {options.out}/model.py, weights.pt and verification.json")


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise Failure(f"{out} is a file; give --out a directory", status=2)
    if out.exists() and any(out.iterdir()):
        raise Failure(f"{out} is not empty; give --out a new directory", status=2)


def _import_model(folder: Path) -> nn.Module:
    """The network as a user of the written files gets it."""
    import importlib.util

    sys.dont_write_bytecode = True  # the folder is to hold three files
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


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
    exported: nn.Module,
    trained: Callable[[str], nn.Module],
    executions: tuple[str, ...],
    images: Tensor,
    labels: Tensor,
) -> dict[str, Any]:
    """The exported network against the trained one in these executions."""
    logits = _logits(exported, images)
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
        "tolerance": {execution: TOLERANCE[execution] for execution in executions},
        "predictions_equal": predictions_equal,
        "test_top1": float((logits.argmax(1) == labels).double().mean()),
        "agrees": predictions_equal and all(d <= TOLERANCE[e] for e, d in differences.items()),
    }


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return torch.cat([network(batch) for batch in images.split(500)])
