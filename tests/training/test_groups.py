"""Few-shot supernets: a restricted space, trained from the weights of a supernet."""

import copy

import pytest
import torch
from naive import Naive, make, split, uneven
from torch.nn import functional as F

import mnas
from mnas.networks import agreement
from mnas.training.registry import RULES
from mnas.training.trainer import Recipe, supernet_trainer


def trained():
    trainer = make(uneven())
    while not trainer.finished:
        trainer.advance()
    return trainer.module


def group(space, whole, rule="single_path", **options):
    splits = split(space, 48, seed=2), split(space, 6, seed=3)
    recipe = Recipe(1, batch_size=8, lr=0.05)
    return supernet_trainer(
        space, *splits, recipe, 5, start=whole.state_dict(), rule=rule, rule_options=options
    )


@pytest.mark.parametrize("value", ["k1", "k3", "k5"])
def test_a_sub_supernet_trains_as_separate_modules_that_start_from_the_supernet(value):
    """Bit for bit, on paths with that value alone; the supernet stays as it was."""
    whole = trained()
    before = copy.deepcopy(whole.state_dict())
    trainer = group(whole.space.restricted(choice0=value), whole)
    naive = Naive(trainer)
    generator = torch.Generator()
    generator.set_state(trainer.sampler.generator.get_state())
    first, used = ("k1", "k3", "k5").index(value), set()
    while not trainer.finished:
        images, labels = naive.batch()
        path = trainer.space.sample(generator)
        used.add(path)
        naive.optimizer.zero_grad()
        loss = F.cross_entropy(naive.model(images, path), labels)
        loss.backward()
        naive.step()
        assert trainer.advance() == loss.item()
        naive.space = whole.space  # compared on all paths
        naive.compare()
    assert used == {(first, 0), (first, 1)}
    assert {row["arch"] for row in trainer.rows} == {f"{value}-k3", f"{value}-k5"}
    assert all(torch.equal(v, before[name]) for name, v in whole.state_dict().items())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_the_group_and_nothing_else(rule):
    whole = trained()
    space = whole.space.restricted(choice0="k3")
    teacher = mnas.export(whole, (2, 1)).eval()
    trainer = group(space, whole, rule, **({"teacher": teacher} if rule == "distilled" else {}))
    while not trainer.finished:
        trainer.advance()
    choice = trainer.module.choices[0]
    others = {id(p) for p in choice.parameters()} - {id(p) for p in choice.parameters_of(1)}
    moved = 0
    pairs = zip(trainer.module.parameters(), whole.parameters(), strict=True)
    for ours, theirs in pairs:
        if id(ours) in others:
            assert torch.equal(ours, theirs)
        else:
            moved += not torch.equal(ours, theirs)
    assert moved == len(list(whole.parameters())) - len(others)


def test_everything_on_is_everything_of_the_group():
    """With one network in a group there is nothing else: it agrees with itself."""
    whole = trained()
    images = split(whole.space, 16).images
    alone = mnas.Supernet(whole.space.restricted(choice0="k5", choice1="k3"))
    alone.load_state_dict(whole.state_dict())
    assert agreement(alone, [(2, 0)], images) == pytest.approx([0.0], abs=1e-6)
    assert agreement(whole, [(2, 0)], images)[0] > 1e-3


def test_weights_of_another_space_are_refused():
    whole, other = trained(), mnas.Supernet(mnas.spaces.get("mil4"))
    with pytest.raises(ValueError, match=r"^start does not fit a supernet of space uneven: "):
        group(whole.space.restricted(choice0="k3"), other)
