"""Search: which networks of a space score best at what they cost, by samplers of optuna."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnas.networks.cost import cost
from mnas.space.coupling import Path as Indices
from mnas.space.search_space import SearchSpace

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("random", "tpe", "nsga2")
AIMS = ("score,cost", "score")
DIRECTIONS = ["maximize", "minimize"]
COSTS = ("params", "macs", "latency")
Measure = Callable[[list[Indices]], Sequence[float]]
"""Given the paths of distinct networks, a number for each."""
Price = dict[str, Any]
"""A number for each of COSTS, or None."""


class Found(NamedTuple):
    """A network that was scored."""

    path: Indices
    arch: str
    score: float
    params: int
    macs: int
    latency: float | None = None
    "Milliseconds, where the search has measured them."


class Search(NamedTuple):
    """networks: all that were scored, each once, the best first. front: those of them to which no
    other is both better and cheaper, the cheapest first. trials: how many networks were drawn."""

    networks: tuple[Found, ...]
    front: tuple[Found, ...]
    trials: int


def suggest(trial: optuna.Trial, space: SearchSpace) -> Indices:
    """The canonical path that a trial of an optuna study suggests, a parameter a decision."""
    path = tuple(
        decision.labels.index(
            trial.suggest_categorical(decision.name, [decision.labels[i] for i in indices])
        )
        for decision, indices in zip(space.decisions, space.indices, strict=True)
    )
    return space.canonical(path)


def front(networks: Sequence[Found], by: str = "macs") -> tuple[Found, ...]:
    """Those that no other network matches in score and cost and beats in one of them; of equal
    ones the first by name. The cheapest first. by: "macs", "params" or "latency"."""
    found: list[Found] = []
    for one in sorted(networks, key=lambda n: (getattr(n, by), -n.score, n.arch)):
        if not found or one.score > found[-1].score:
            found.append(one)
    return tuple(found)


def search(
    space: SearchSpace,
    score: Measure,
    *,
    trials: int = 100,
    sampler: str = "nsga2",
    aims: str = "score,cost",
    by: str = "macs",
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency: float | None = None,
    latency: Measure | None = None,
    batch: int = 16,
    seed: int = 0,
    storage: str | Path | None = None,
    name: str | None = None,
    progress: Callable[[int], Any] = lambda _: None,
) -> Search:
    """Search for networks of a high score and a low cost, or of a high score within budgets.

    score: is given the paths of distinct networks within the budgets, and returns a number for
    each, the higher the better; no network is scored twice. Of a supernet, `lambda paths: [s.top1
    for s in mnas.evaluate_paths(net, paths, images, labels)]`, which computes what paths of a batch
    share once. trials: how many networks are drawn, those over a budget and those that were scored
    before included; it ends early if the whole space is known. sampler: "random", "tpe" (with two
    aims as Ozaki et al., JAIR 2022) or "nsga2" (Deb et al., 2002), of which a batch is a
    generation. aims: "score,cost" for the front of both; "score" for the best network within the
    budgets, whatever else it costs. by: the cost of the front, "macs", "params" or "latency".
    max_params, max_macs, max_latency (ms): budgets. latency: is given the paths of distinct
    networks within the other budgets, and returns the milliseconds of each; a network is measured
    once. Of a supernet, `mnas.networks.Latency(net, images)`, which measures exported networks on
    this machine.
    progress: is told how many trials have ended since the last call.

    storage: a file, or a URL of a database that optuna takes; with the same settings a search goes
    on there after it was stopped, and what was scored stays. `name` tells the searches in a storage
    apart, and supernets of one space: it must be another for another score.

    Raises ValueError for options that are out of range, a storage with other settings, and scores
    that are no finite numbers."""
    _check(space, score, trials, sampler, aims, by, batch, max_params, max_macs)
    _check_latency(by, max_latency, latency)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    budgets = {"params": max_params, "macs": max_macs, "latency": max_latency}
    settings = {"space": space.name, "networks": str(space.size), "sampler": sampler}
    settings |= {"aims": aims, "by": by, "seed": seed, "batch": batch, **budgets}
    study = _study(storage, name or space.name, aims)
    kept = {**study.user_attrs, "aims": AIMS[2 - len(study.directions)]}
    for key, value in settings.items():
        if kept.get(key, value) != value:
            raise ValueError(
                f"the search {study.study_name!r} in {storage} has {key}={kept[key]!r}, not "
                f"{value!r}; give it the same settings, another storage or another name"
            )
        study.set_user_attr(key, value)
    known: dict[Indices, Found] = {}
    over: set[Indices] = set()
    prices: dict[Indices, Price] = {}
    ended = 0
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        ended += 1
        path = tuple(trial.user_attrs["path"])
        prices[path] = {**cost(space, path)._asdict(), "latency": trial.user_attrs.get("latency")}
        if trial.user_attrs["over"]:
            over.add(path)
        else:
            known[path] = _found(space, path, trial.values[0], prices[path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # A sampler that starts again must not draw again what it has drawn before.
        study.sampler = _sampler(sampler, batch, seed + ended)
        while ended < trials and len(known) + len(over) < space.size:
            asked = [study.ask() for _ in range(min(batch, trials - ended))]
            paths = [suggest(trial, space) for trial in asked]
            _price(space, paths, prices, budgets, latency)
            excess = {path: _excess(prices[path], budgets) for path in paths}
            over.update(path for path in paths if excess[path])
            new = [p for p in dict.fromkeys(paths) if p not in known and p not in over]
            scores = _numbers("score", score, new)
            known |= {p: _found(space, p, value, prices[p]) for p, value in scores.items()}
            for trial, path in zip(asked, paths, strict=True):
                trial.set_user_attr("path", list(path))
                trial.set_user_attr("arch", space.format(path))
                trial.set_user_attr("over", bool(excess[path]))
                trial.set_user_attr("latency", prices[path]["latency"])
                trial.set_constraint("budget", excess[path])
                value = 0.0 if path in over else known[path].score
                # Without a latency it is over another budget; any number will do.
                values = [value, prices[path][by] or 0.0]
                study.tell(trial, values[: len(study.directions)])
            ended += len(asked)
            progress(len(asked))
    networks = sorted(known.values(), key=lambda n: (-n.score, getattr(n, by), n.arch))
    return Search(tuple(networks), front(networks, by), ended)


def _price(
    space: SearchSpace,
    paths: list[Indices],
    prices: dict[Indices, Price],
    budgets: Price,
    latency: Measure | None,
) -> None:
    """Add what networks cost that are new; within the other budgets latency is measured, too."""
    new = [path for path in dict.fromkeys(paths) if path not in prices]
    prices |= {path: {**cost(space, path)._asdict(), "latency": None} for path in new}
    if latency is not None:
        within = [path for path in new if not _excess(prices[path], budgets)]
        for path, milliseconds in _numbers("latency", latency, within).items():
            prices[path]["latency"] = milliseconds


def _numbers(name: str, function: Measure, paths: list[Indices]) -> dict[Indices, float]:
    numbers = [float(value) for value in function(paths)] if paths else []
    if len(numbers) != len(paths) or not all(abs(value) < float("inf") for value in numbers):
        raise ValueError(
            f"{name} returned {numbers} for {len(paths)} paths; expected a finite number for each"
        )
    return dict(zip(paths, numbers, strict=True))


def _found(space: SearchSpace, path: Indices, score: float, price: Price) -> Found:
    return Found(path, space.format(path), score, price["params"], price["macs"], price["latency"])


def _excess(price: Price, budgets: Price) -> float:
    """By what share of the budgets a network is over them; 0 within. What is not known yet is not
    over."""
    parts = [
        price[key] / most - 1
        for key, most in budgets.items()
        if most is not None and price[key] is not None
    ]
    return sum(max(part, 0.0) for part in parts)


def _sampler(name: str, batch: int, seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    seed %= 2**32
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    if name == "tpe":
        return samplers.TPESampler(seed=seed)
    return samplers.NSGAIISampler(seed=seed, population_size=batch)


def _study(storage: str | Path | None, name: str, aims: str) -> optuna.Study:
    """The study of this name, which may have trials already. Raises ValueError for a storage that
    cannot be used."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    where: Any = storage
    try:
        if storage is not None and "://" not in str(storage):
            if not Path(storage).parent.is_dir():
                raise FileNotFoundError(f"{Path(storage).parent} is no directory")
            lock = JournalFileSymlinkLock(str(storage))
            lock.acquire()  # against others who search there
            try:
                _mend(Path(storage))
            finally:
                lock.release()
            where = JournalStorage(JournalFileBackend(str(storage), lock))
        study = optuna.create_study(
            storage=where,
            study_name=name,
            directions=DIRECTIONS[: len(aims.split(","))],
            load_if_exists=True,
        )
        directions = [direction.name.lower() for direction in study.directions]
        begun = bool(study.get_trials(deepcopy=False))
        of_ours = directions == DIRECTIONS[: len(directions)]
        if not of_ours or (begun and "space" not in study.user_attrs):
            raise ValueError(f"{name!r} there is a study of something else; give another name")
        return study
    except Exception as error:  # whatever files, databases and their drivers raise
        reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"storage={str(storage)!r} cannot hold a search ({reason}); give a new file in an "
            "existing directory, or the URL of a database that optuna takes"
        ) from error


def _mend(file: Path) -> None:
    """Take away a last line that a full disk or a kill has cut, which optuna would write on behind,
    and then not read. Raises ValueError for a file that holds no search: nothing is written into
    it."""
    if not file.exists():
        return
    if not file.is_file():
        raise ValueError("it is no regular file")
    with file.open("rb+") as journal:
        content = journal.read()
        if content and not content.startswith(b'{"op_code":'):
            raise ValueError("it holds something else")
        journal.truncate(content.rfind(b"\n") + 1)


def _check(
    space: Any,
    score: Any,
    trials: Any,
    sampler: Any,
    aims: Any,
    by: Any,
    batch: Any,
    *budgets: Any,
) -> None:
    if not isinstance(space, SearchSpace):
        raise ValueError(f"space is a {type(space).__name__}; expected a mnas.SearchSpace")
    if not callable(score):
        raise ValueError(
            f"score is a {type(score).__name__}; expected a function of paths that returns numbers"
        )
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r}; expected one of {', '.join(SAMPLERS)}")
    if aims not in AIMS:
        raise ValueError(f"aims={aims!r}; expected {' or '.join(map(repr, AIMS))}")
    if by not in COSTS:
        raise ValueError(f"by={by!r}; expected one of {', '.join(COSTS)}")
    named = {"trials": trials, "batch": batch}
    named |= {
        k: v for k, v in zip(("max_params", "max_macs"), budgets, strict=True) if v is not None
    }
    for key, value in named.items():
        if type(value) is not int or value < (2 if key == "batch" else 1):
            raise ValueError(
                f"{key}={value!r}; expected a whole number above {int(key == 'batch')}"
            )
    if find_spec("optuna") is None:
        raise ValueError("optuna is not installed; pip install 'mnas[search]'")


def _check_latency(by: str, most: Any, latency: Any) -> None:
    if most is not None and not (type(most) in (int, float) and 0 < most < float("inf")):
        raise ValueError(f"max_latency={most!r}; expected milliseconds, a number above 0")
    if latency is None and (most is not None or by == "latency"):
        given = 'by="latency"' if most is None else f"max_latency={most!r}"
        raise ValueError(
            f"{given} needs latency=, a function of paths that returns milliseconds, such as "
            "mnas.networks.Latency(net, images)"
        )
    if latency is not None and not callable(latency):
        raise ValueError(f"latency is a {type(latency).__name__}; expected a function of paths")
