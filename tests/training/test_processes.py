"""Real processes that share every batch, against one that accumulates their shares."""

import pytest
import torch
from processes import together

from mnas.training.registry import RULES

WORKER = """
import sys
from dataclasses import replace

import torch
from torch import distributed, nn

import mnas
from mnas.training.data import Split
from mnas.training.processes import ALONE, Processes
from mnas.training.recipe import Recipe
from mnas.training.registry import RULES, bound
from mnas.training.rules import Report
from mnas.training.trainer import SAMPLERS, _seeds, supernet_trainer

rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=world
)


def model():
    def block(width, kernel):
        conv = nn.Conv2d(2, width, kernel, padding=kernel // 2)
        return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(width, 2, 1))

    return nn.Sequential(
        mnas.Choice({"small": block(2, 1), "large": block(3, 3), "wide": block(5, 3)}),
        nn.ReLU(),
        mnas.Choice({"skip": nn.Identity(), "conv": nn.Conv2d(2, 2, 3, padding=1)}),
        *([nn.BatchNorm2d(2)] if norm else []), nn.Flatten(), nn.Linear(32, 4),
    )


def options(rule, space):
    if rule != "distilled":
        return {}
    torch.manual_seed(5)
    return {"teacher": mnas.standalone(space, (1, 1)).eval()}


def accumulating(rule, space, own, seed, sampler):
    "One process: the same shares on the same paths, one after the other, and one step."
    run = bound(rule, space, sampler, options(rule, space))
    others = [SAMPLERS[sampler](space, _seeds(seed, r)[1]) for r in range(1, world)]

    def accumulate(step):
        draws = step.sampler.state_dict()
        reports = []
        for number in range(world):
            sampler = others[number - 1] if own and number else step.sampler
            if not own:
                sampler.load_state_dict(draws)
            size = len(step.labels) // world
            part = slice(number * size, number * size + size)
            reports.append(
                run(replace(step, images=step.images[part], labels=step.labels[part],
                            sampler=sampler))
            )
        for p in step.net.parameters():
            if p.grad is not None:
                p.grad /= world
        total = sum(r.total for r in reports) / world
        return Report([], total, sum(r.lr for r in reports) / world)

    return accumulate


def trained(rule, own, processes, accumulate=False):
    space = mnas.SearchSpace(model, input_shape=(2, 4, 4))
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(48, 2, 4, 4, generator=generator)
    split = Split(x, torch.randint(4, (48,), generator=generator))
    recipe = Recipe(1, batch_size=12, lr=0.05, augment="shift")
    sampler = RULES[rule].sampler or "uniform"
    of_rule = {"rule": rule, "rule_options": options(rule, space)}
    if accumulate:
        of_rule = {"rule": accumulating(rule, space, own, 7, sampler)}
    trainer = supernet_trainer(
        space, split, split, recipe, 7, sampler=sampler, processes=processes, **of_rule
    )
    losses = []
    while not trainer.finished:
        losses.append(trainer.advance())
        if trainer.step == 2 and not accumulate:  # as a run that is stopped and resumed
            state = trainer.state_dict()
            trainer = supernet_trainer(
                space, split, split, recipe, 7, sampler=sampler, processes=processes, **of_rule
            )
            trainer.load_state_dict(state)
    optimizer = [
        trainer.optimizer.state.get(p, {}).get("momentum_buffer")
        for p in trainer.module.parameters()
    ]
    weights = {k: v.detach().clone() for k, v in trainer.module.state_dict().items()}
    return {
        "weights": weights, "optimizer": optimizer, "losses": losses, "rows": trainer.rows,
        "updates": sum(trainer._updates.values()), "paths": trainer._paths,
    }


found = {}
for dtype, norm in ((torch.float32, False), (torch.float64, True)):
    torch.set_default_dtype(dtype)
    for rule in RULES:
        for own in (False, True):
            case = {"ours": trained(rule, own, Processes(rank, world, own))}
            if rank == 0:
                case["one"] = trained(rule, own, ALONE, accumulate=True)
            found[rule, own, str(dtype)] = case
torch.save(found, out)
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    """What each process has, by rule, whether it drew paths of its own, and number type."""
    folder = tmp_path_factory.mktemp("processes")
    outs = [folder / f"{rank}.pt" for rank in range(request.param)]
    ranks = [(rank, request.param, folder / "store", out) for rank, out in enumerate(outs)]
    assert together(WORKER, ranks, timeout=300) == [0] * request.param
    return [torch.load(out, weights_only=True) for out in outs]


DTYPES = {"torch.float32": 1e-6, "torch.float64": 1e-12}
cases = pytest.mark.parametrize("own", [False, True], ids=["same paths", "own paths"])


def close(a, b, tolerance):
    """Of the largest entry, or of 1."""
    return (a - b).abs().max() <= tolerance * max(1, b.abs().max())


@pytest.mark.slow
@cases
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_all_processes_have_the_same_bits_which_are_those_of_one(found, rule, own, dtype):
    """Weights, running statistics and momentum, after a stop and a resume in the middle; one
    process that accumulates the same shares on the same paths has the same but for rounding.
    Running statistics are those of the first process's shares."""
    first, *others = (of_rank[rule, own, dtype]["ours"] for of_rank in found)
    assert first["optimizer"]
    for other in others:
        for name, tensor in first["weights"].items():
            assert torch.equal(tensor, other["weights"][name]), name
        for a, b in zip(first["optimizer"], other["optimizer"], strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
        assert (first["losses"], first["rows"]) == (other["losses"], other["rows"])
    one = found[0][rule, own, dtype]["one"]
    for name, tensor in first["weights"].items():
        if "running" not in name and "tracked" not in name:
            assert close(tensor, one["weights"][name], DTYPES[dtype]), name
    for a, b in zip(first["optimizer"], one["optimizer"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or close(a, b, DTYPES[dtype])
    if first["paths"] is not None:
        assert first["updates"] == 4 * first["paths"]
