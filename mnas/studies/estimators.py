"""How each way of scoring the networks of a study ranks them, and at what cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mnas.studies.results import Arm, Study, Summary
    from mnas.studies.statistics import Interval

MEASURES = ("test", "val", "loss")


def estimators(study: Study) -> list[dict[str, Any]]:
    """A line for each, costs relative to one run from scratch of each network. On the same images,
    what these say by chance counts as agreement; tau is therefore also given on other images:
    scores on those of the test with the truth on those of validation and the other way round; and
    from validation to test, which is what a user of a supernet gets. By loss: networks are scored
    by test loss, against the truth in accuracy and against that in loss.

    Arms of the studies that `study.shorter` names are estimators too: less training from scratch,
    whose truth leaves out the run of the same seed, which has the same start."""
    import numpy as np

    scratch = study.arms["scratch"]
    found = []
    for number, name in enumerate(("parameters", "multiply-accumulates")):
        scores = np.array([[study.costs[arch][number] for arch in study.archs]], float)
        line = _line(name, dict.fromkeys(MEASURES, scores), scratch, False, None)
        found.append({**line, "seeds": 1, "compute": 0.0, "seconds": 0.0})
    for name, arm in study.arms.items():
        if arm is scratch and len(arm.seeds) < 2:
            continue
        before = study.arms.get(study.about["arms"][name]["after"])
        found.append(_of_arm(name, arm, scratch, arm is scratch, before))
    for other in study.shorter:
        order = [other.archs.index(arch) for arch in study.archs]
        for name, arm in other.arms.items():
            about, alone = other.about["arms"][name], arm.rows[0]["kind"] == "scratch"
            if about["after"] or not (alone or name == "supernet"):
                continue
            if study.about["arms"].get(name) == about:
                continue  # the same runs
            paired = arm.seeds == scratch.seeds
            if not paired and set(arm.seeds) & set(scratch.seeds):
                continue  # neither independent of the truth nor one to one with it
            label = f"{name} of {other.name}"
            found.append(_of_arm(label, arm.ordered(order), scratch, paired and alone, None))
    return found


def _of_arm(name: str, arm: Arm, scratch: Arm, paired: bool, before: Arm | None) -> dict[str, Any]:
    """before: what it began with, which is a part of its cost."""
    scores = {measure: getattr(arm, measure) for measure in MEASURES}
    line = _line(name, scores, scratch, paired, arm.same_images(scratch))
    line["seeds"] = len(arm.seeds)
    line["compute"] = (arm.cost + (before.cost if before else 0)) / scratch.cost
    line["seconds"] = (arm.seconds + (before.seconds if before else 0)) / scratch.seconds
    return line


def _line(
    name: str, scores: dict[str, NDArray[np.float64]], scratch: Arm, paired: bool, correct: Any
) -> dict[str, Any]:
    """paired: the scores are of runs that share seeds with those of the truth, or are these.
    correct: of both, for the interval of tau on test images."""
    import numpy as np

    from mnas.studies import statistics

    tau_of = statistics.ceiling if paired else statistics.agreement
    ways: dict[str, tuple[Any, Any]] = {
        "tau": (scores["test"], scratch.test),
        "tau_validation_to_test": (scores["val"], scratch.test),
        "tau_other_images": (
            np.stack([scores["test"], scores["val"]]),
            np.stack([scratch.val, scratch.test]),
        ),
        "tau_by_loss": (scores["loss"], scratch.test),
        "tau_of_loss": (scores["loss"], scratch.loss),
    }
    taus: dict[str, Interval] = {
        key: tau_of(*pair, correct=correct if key == "tau" else None)[1]
        for key, pair in ways.items()
    }
    if paired:
        truths = (scratch.test.sum(0) - scratch.test) / (len(scratch.test) - 1)
        lost = [statistics.regret(*pair) for pair in zip(scores["val"], truths, strict=True)]
    else:
        lost = statistics.regret(scores["val"], scratch.test.mean(0))
    line: dict[str, Any] = {"name": name, "seeds": 0}
    for key, found in taus.items():
        mean = "tau_mean" if key == "tau" else key
        line |= {mean: found.mean, f"{key}_ci": [found.low, found.high]}
    return {**line, "regret_mean": float(np.mean(lost))}


def estimator(found: Summary, name: str) -> dict[str, Any] | None:
    """The line of an estimator in a summary, if it is there."""
    return next((line for line in found["estimators"] if line["name"] == name), None)
