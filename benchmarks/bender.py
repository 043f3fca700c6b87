"""Claims of Bender et al. 2018 on nine networks of MNIST; brings the table of docs/bender2018.md up
to date.

- `python -m benchmarks.bender`: about 10 minutes on one thread of a busy machine

Three supernets of `mil9` a seed, on the same batches: one sampled path a step, all paths at once
(`path_dropout` that drops nothing), and path dropout whose rate rises to a half. Each scores every
network with the supernet's own BatchNorm statistics and with recalibrated ones, and says how far
its predictions are from those of everything on (`mnas.networks.agreement`, training images, no
labels). What they are held against is the mean from scratch in results/mil9_mnist_long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TRAIN, TEST, EPOCHS, SEEDS = 16_000, 10_000, 3, (0, 1, 2)
BN_IMAGES, KL_IMAGES = 2_000, 1_024
OUT, PAGE, PART = Path("results/bender"), Path("docs/bender2018.md"), "supernets"
TRUTH = Path("results/mil9_mnist_long/rows.jsonl")
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "single path": ("single_path", {}),
    "all paths": ("path_dropout", {"drop": 0.0}),
    "path dropout": ("path_dropout", {"drop": 0.5}),
}
Row = dict[str, Any]


def measure(
    name: str, seed: int, train: int = TRAIN, test: int = TEST, epochs: float = EPOCHS
) -> list[Row]:
    """A row for each network of one supernet."""
    import mnas
    from mnas.networks import agreement
    from mnas.training import data
    from mnas.training.recipe import Recipe
    from mnas.training.trainer import supernet_trainer

    rule, options = RULES[name]
    space, images = mnas.spaces.mil9(), data.load("mnist")
    train_split, test_split = images.train.first(train), images.test.first(test)
    trainer = supernet_trainer(
        space,
        train_split,
        images.validation.first(500),
        Recipe(epochs=epochs, batch_size=64, lr=0.1, precision="bf16", validate_every=100),
        seed,
        rule=rule,
        rule_options=options,
    )
    while not trainer.finished:
        trainer.advance()
    net, paths = trainer.module, list(space.paths())
    stored = mnas.evaluate_paths(net, paths, test_split.images, test_split.labels)
    fresh = mnas.evaluate_paths(
        net,
        paths,
        test_split.images,
        test_split.labels,
        bn_images=train_split.images[:BN_IMAGES],
    )
    apart = agreement(net, paths, train_split.images[:KL_IMAGES])
    return [
        {
            "rule": name,
            "seed": seed,
            "arch": space.format(path),
            "stored_top1": stored[i].top1,
            "test_top1": fresh[i].top1,
            "test_loss": fresh[i].loss,
            "kl_to_all": apart[i],
        }
        for i, path in enumerate(paths)
    ]


def summaries(rows: list[Row], truth: dict[str, float]) -> list[Row]:
    """Of each supernet: mean top-1 with stored and with recalibrated statistics in %, range of the
    networks in points, and tau of three scores with the truth and of two with each other."""
    from scipy.stats import kendalltau

    found = []
    for name in RULES:
        for seed in sorted({row["seed"] for row in rows}):
            own = [row for row in rows if (row["rule"], row["seed"]) == (name, seed)]
            top1 = [100 * row["test_top1"] for row in own]
            loss, kl = ([-row[key] for row in own] for key in ("test_loss", "kl_to_all"))
            true = [truth[row["arch"]] for row in own]
            found.append(
                {
                    "rule": name,
                    "seed": seed,
                    "stored": sum(100 * row["stored_top1"] for row in own) / len(own),
                    "recalibrated": sum(top1) / len(own),
                    "lowest": min(top1),
                    "range": max(top1) - min(top1),
                    "tau_top1": kendalltau(top1, true)[0],
                    "tau_loss": kendalltau(loss, true)[0],
                    "tau_kl": kendalltau(kl, true)[0],
                    "kl_and_top1": kendalltau(kl, top1)[0],
                }
            )
    return found


def truth() -> dict[str, float]:
    """Mean test top-1 from scratch of each network, %."""
    from mnas.storage import strict_json

    kept: dict[str, list[float]] = {}
    for row in strict_json.parse_lines(TRUTH.read_bytes(), dict, TRUTH):
        if row["kind"] == "scratch":
            kept.setdefault(row["arch"], []).append(100 * row["test_top1"])
    return {arch: sum(values) / len(values) for arch, values in kept.items()}


COLUMNS = {
    "stored": ("mean top-1, stored statistics, %", 1),
    "recalibrated": ("recalibrated, %", 2),
    "range": ("range of networks, points", 2),
    "tau_top1": ("tau of top-1", 2),
    "tau_loss": ("tau of loss", 2),
    "tau_kl": ("tau of KL to all", 2),
    "kl_and_top1": ("KL with top-1", 2),
}


def table(found: list[Row]) -> str:
    """Values of the seeds, one after the other: too few for an interval."""
    from mnas.studies.pages import markdown

    body = []
    for name in RULES:
        own = [row for row in found if row["rule"] == name]
        body.append(
            [
                name,
                *(", ".join(f"{row[key]:.{n}f}" for row in own) for key, (_, n) in COLUMNS.items()),
            ]
        )
    return markdown(body, ["supernet", *(title for title, _ in COLUMNS.values())])


def main() -> None:
    from mnas.studies.pages import check_page, publish, record
    from mnas.training import runtime

    check_page(PAGE, (PART,))
    runtime.configure_runtime(1)
    rows = [row for seed in SEEDS for name in RULES for row in measure(name, seed)]
    record(OUT, PART, rows, part=PART, train=TRAIN, test=TEST, epochs=EPOCHS)
    publish(PAGE, PART, table(summaries(rows, truth())))


if __name__ == "__main__":
    main()
