"""A study of invented accuracies: every number of its report can be computed by hand."""

import json

import numpy as np
from conftest import rows
from running import ARCHS

from mnas.studies.results import FIRST_SCRATCH_SEED, study_folder


def made_up(path, supernets=6, scratch=5, seed=0, variants=()):
    """A study of invented accuracies: every number of the report can be computed by hand from
    them."""
    path.mkdir()
    random = np.random.default_rng(seed)
    quality = np.array([0.90, 0.91, 0.93, 0.96])
    arms = {"supernet": ("supernet", supernets), "scratch": ("scratch", scratch)}
    arms |= {
        name: ("supernet" if "supernet" in name else "scratch", supernets) for name in variants
    }
    lines = {"rows": [], "variants": []}
    for name, (kind, number) in arms.items():
        for s in range(number):
            s += FIRST_SCRATCH_SEED * (kind == "scratch")
            for i, arch in enumerate(ARCHS):
                row = {
                    "kind": kind,
                    "seed": s,
                    "arch": arch,
                    "test_top1": round(quality[i] + random.normal(0, 0.01), 4),
                }
                row |= {
                    "val_top1": round(quality[i] + random.normal(0, 0.01), 4),
                    "test_loss": 0.1,
                    "images": 1000,
                }
                row |= {"params": 10 - i, "macs": 100 + i, "steps": 10, "seconds": 2.0}
                lines["rows" if name == kind else "variants"].append(
                    row if name == kind else {"variant": name, **row}
                )
    for name, found in lines.items():
        if found:
            put(path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    about = {
        "space": "mil4",
        "dataset": "mnist",
        "recipe": "short",
        "seeds": supernets,
        "variants": bool(variants),
    }
    about |= {
        "failed": [
            {"run": "scratch x seed 9", "arm": "scratch", "seed": 9, "reason": "loss is nan"}
        ]
    }
    about |= {
        "arms": {name: {"sampler": "uniform", "after": None} for name in arms},
        "limit_train": None,
    }
    about |= {"limit_test": None, "networks": 16, "seed": 0, "drawn": False, "test_images": 10_000}
    if "fine-tuned" in arms:
        about["arms"]["fine-tuned"]["after"] = "supernet"
    about |= {"environment": {"processor": "p", "cores": 2, "torch": "t"}}
    put(path / "study.json", json.dumps(about))
    return lines["rows"]


def put(file, text):
    """A file of a study, as tools/study.py writes it."""
    study_folder(file.parent).write({file.name: text})


def matrix(found, kind, key):
    seeds = sorted({row["seed"] for row in found if row["kind"] == kind})
    at = {(row["kind"], row["seed"], row["arch"]): row[key] for row in found}
    return np.array([[100 * at[kind, s, a] for a in ARCHS] for s in seeds])


def numbers_of(folder, arm):
    """Accuracy of each seed of an arm, the mean over networks."""
    found = [row for name in ("rows", "variants") for row in rows(folder / f"{name}.jsonl")]
    of_arm = [row for row in found if row.get("variant", row["kind"]) == arm]
    seeds = sorted({row["seed"] for row in of_arm})
    return np.array(
        [100 * np.mean([row["test_top1"] for row in of_arm if row["seed"] == s]) for s in seeds]
    )
