"""Numbers in prose: templates that the rows of a study fill, and that must then be found on their
page.

    [[claims]]
    page = "docs/results.md"
    study = "results/mil4_mnist"
    say = ["tau {tau} beside a noise ceiling of {ceiling_mean:.2f}"]

    beside = "results/mil4_nested_mnist"

Templates are those of `str.format`. Names: those of summary.json; each estimator, by its name;
`tau` and `ceiling` with their intervals; `gap`, by how much networks with inherited weights
are better than from scratch; `lowest`, the lowest accuracy of all runs; `gain[PATTERN]`, how much
more networks that match gain from inheriting than the others, over supernets (`.mean`, `.low`,
`.high`: the mean, the lowest and the highest of them), and the same on validation images,
`validation_gain`; and with `beside`, another study of the same networks, `pooled[NETWORK]`, the
mean from scratch over the runs of both, and `pooled[tau]`, of their two means."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnas.errors import Failure
from mnas.studies import statistics
from mnas.studies.pages import shown
from mnas.studies.results import Study, summary
from mnas.studies.statistics import Interval


@dataclass(frozen=True)
class _Gains:
    """test: accuracies (seeds, networks) with inherited weights and from scratch."""

    archs: list[str]
    inherited: Any
    scratch: Any

    def __getitem__(self, pattern: str) -> Interval:
        chosen = np.array([fnmatch.fnmatchcase(arch, pattern) for arch in self.archs])
        gains = self.inherited - self.scratch.mean(0)
        more = gains[:, chosen].mean(1) - gains[:, ~chosen].mean(1)
        return Interval(more.mean(), more.min(), more.max())


def names(study: Study) -> dict[str, Any]:
    """What templates may name."""
    found = summary(study)
    inherited, scratch = study.arms["supernet"], study.arms["scratch"]
    known = found | {line["name"]: line for line in found["estimators"]}
    for key in ("tau", "ceiling"):
        known[key] = shown(found[f"{key}_mean"], *(found[f"{key}_ci"] or (None, None)))
    known["gap"] = shown(*statistics.difference(inherited.test.mean(1), scratch.test.mean(1)), 3)
    known["lowest"] = min(arm.test.min() for arm in study.arms.values())
    known["gain"] = _Gains(study.archs, inherited.test, scratch.test)
    known["validation_gain"] = _Gains(study.archs, inherited.val, scratch.val)
    return known


def pooled(study: Study, other: Study) -> dict[str, float]:
    """Two references of the same networks as one, and tau of the two."""
    order = [other.archs.index(arch) for arch in study.archs]
    both = study.arms["scratch"].test, other.arms["scratch"].test[:, order]
    means = np.concatenate(both).mean(0)
    tau = float(statistics.kendall(*(runs.mean(0) for runs in both)))
    return {"tau": tau, **dict(zip(study.archs, means.tolist(), strict=True))}


def untrue(file: Path) -> list[str]:
    """The claims that their pages do not make as the rows have it. Raises Failure for a file that
    cannot be read so."""
    wrong = []
    try:
        claims = tomllib.loads(file.read_text())["claims"]
        for claim in claims:
            page, study = Path(claim["page"]), Path(claim["study"])
            text, known = " ".join(page.read_text().split()), names(Study(study))
            if "beside" in claim:
                known["pooled"] = pooled(Study(study), Study(Path(claim["beside"])))
            comma = page.suffixes[-2:-1] == [".ru"]
            for template in claim["say"]:
                said = template.format(**known)
                if comma:  # then intervals are [0,07; 0,70]
                    said = re.sub(r"\[(\S+), (\S+)\]", r"[\1; \2]", said).replace(".", ",")
                if said not in text:
                    wrong.append(f"{page}: {said!r} ({study})")
    except (
        OSError,
        UnicodeDecodeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise Failure(
            f"{file}: {type(error).__name__}: {error}; expected claims as mnas/studies/claims.py "
            "says",
            2,
        ) from error
    return wrong
