"""Top-1 accuracy of networks from a run: sampled from a supernet with its weights, or trained from
scratch.

- `mnas evaluate --checkpoint runs/supernet-mil4-mnist-seed0`: all four, about 12 s
- `mnas evaluate --checkpoint DIR --arch random --seed 3`: one, drawn by the seed
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import App, Parameter

from mnas.commands.options import Count, Device, Seed, UserPath
from mnas.errors import Failure, writing
from mnas.training import runtime
from mnas.training.saved import open_run


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    checkpoint: UserPath
    "Run directory of tools/train.py."
    space: str | None = None
    "Needed for a run with a space of your own: path/to/file.py:function, as it was trained with."
    arch: str = "all"
    "The network, as conv3x3-conv5x5; all; or random: one drawn by --seed."
    split: Literal["test", "validation"] = "test"
    "Make selections on validation; read test once, for the result."
    bn: Literal["recalibrate", "stored"] | None = None
    """Running statistics: of 2,000 training images for each network, or as stored. [default: as the
    run had it]"""
    seed: Seed = 0
    "For --arch random."
    data_root: UserPath = Path("data")
    "Where the data sets other than mnist are; of folder, the folder."
    limit_test: Count | None = None
    "Use only the first N images of the split."
    device: Device = "cpu"
    "Where to compute; auto is a GPU if there is one. Its numbers differ in the last digits."
    threads: Count | None = None
    "Threads. [default: all cores]"
    out: UserPath | None = None
    "Also write the rows here, one JSON object a line; a new file."


app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options) -> None:
    if options.out is not None and options.out.exists():
        raise Failure(f"{options.out} exists; give --out a new file", status=2)
    if options.out is not None and not options.out.parent.is_dir():
        raise Failure(
            f"{options.out.parent} is no directory; give --out a file in an existing one", status=2
        )

    device = runtime.device(options.device)

    from tabulate import tabulate
    from tqdm.auto import tqdm

    from mnas import cost
    from mnas.storage import files, strict_json
    from mnas.training.trainer import BN_IMAGES

    runtime.configure_runtime(options.threads or runtime.default_threads())
    run = open_run(options.checkpoint, options.space)
    run.say_if_unfinished()
    archs = run.archs(options.arch, options.seed)
    bn = options.bn or run.config.get("bn", "stored")
    data = run.data(options.data_root, device)
    split = (data.test if options.split == "test" else data.validation).first(options.limit_test)
    bn_images = data.train.images[:BN_IMAGES] if bn == "recalibrate" else None
    with tqdm(total=len(archs) * len(split), unit="img", unit_scale=True, disable=None) as bar:
        scores = run.scores(archs, split, bn_images, bar.update)
    rows = []
    for arch, score in zip(archs, scores, strict=True):
        price = cost(run.space, run.space.parse(arch))
        rows.append(
            {
                "arch": arch,
                f"{options.split}_top1": score.top1,
                f"{options.split}_loss": score.loss,
                **price._asdict(),
            }
        )
    shown = [(r["arch"], 100 * r[f"{options.split}_top1"], *list(r.values())[2:]) for r in rows]
    headers = ("arch", f"{options.split} top-1 %", f"{options.split} loss", "params", "MACs")
    print(
        f"{' '.join((run.config['mode'], 'of', run.config['space'], *run.space.group))} on "
        f"{run.config['dataset']}, {len(split)} images"
    )
    print(tabulate(shown, headers, floatfmt=("", ".2f", ".4f"), intfmt=","))
    if options.out is not None:
        with writing(options.out):
            files.write_atomically(options.out, strict_json.lines(rows))
