"""Training rules against the naive loop: separate modules, one pass after the other, stock SGD."""

import copy
import math

import pytest
import torch
from naive import STEPS, Naive, close, make, soft, uneven
from torch import nn
from torch.nn import functional as F

import mnas
from mnas.space.sampler import FixedSampler
from mnas.training.rules import Report, Step
from mnas.training.trainer import DivergedError, _options


def test_single_path_is_a_path_a_step():
    trainer = make(uneven())
    naive = Naive(trainer)
    while not trainer.finished:
        images, labels = naive.batch()
        path = next(naive.sampler)
        naive.optimizer.zero_grad()
        loss = F.cross_entropy(naive.model(images, path), labels)
        loss.backward()
        naive.step()
        assert trainer.advance() == loss.item()
        naive.compare()


def test_fair_adds_up_the_gradients_of_paths_that_use_each_value_once():
    """Bit for bit: three backward passes over separate modules, one step."""
    space = uneven()
    trainer = make(space, "fair", epochs=2)
    naive = Naive(trainer)
    used = []
    while not trainer.finished:
        images, labels = naive.batch()
        paths = [next(naive.sampler) for _ in range(3)]
        assert sorted(first for first, _ in paths) == [0, 1, 2]
        assert {second for _, second in paths} == {0, 1}
        used += [second for _, second in paths]
        naive.optimizer.zero_grad()
        losses = [F.cross_entropy(naive.model(images, path), labels) for path in paths]
        for loss in losses:
            loss.backward()
        naive.step()
        assert trainer.advance() == sum(loss.item() for loss in losses) / 3
        naive.compare()
    assert used.count(0) == used.count(1)  # the shorter decision, over an even number of steps
    assert sum(trainer._updates.values()) == 3 * trainer.step


def test_fair_needs_the_fair_sampler():
    with pytest.raises(ValueError, match=r"^sampler='uniform'; rule fair expects fair$"):
        make(uneven(), "fair", "uniform")


def apart(model, images, labels, paths):
    """The losses of a sandwich, each path with a forward pass of its own."""
    of_largest = model(images, paths[0])
    losses = [F.cross_entropy(of_largest, labels)]
    return losses + [soft(model(images, path), of_largest.detach()) for path in paths[1:]]


@pytest.mark.usefixtures("double")
def test_the_largest_teaches_the_smallest_and_random_ones():
    """Separate forward and backward passes. Statistics apart: a layer that paths share sees the
    batch once."""
    trainer = make(uneven(), "sandwich", epochs=2, random_paths=3)
    naive = Naive(trainer)
    while not trainer.finished:
        images, labels = naive.batch()
        paths = [(2, 1), (0, 0), *(next(naive.sampler) for _ in range(3))]
        naive.optimizer.zero_grad()
        for loss in apart(naive.model, images, labels, paths):
            loss.backward()
        naive.step()
        trainer.advance()
        naive.compare(close, statistics=False)
    assert sum(trainer._updates.values()) == 5 * trainer.step


@pytest.mark.usefixtures("double")
def test_no_gradient_goes_through_the_teacher():
    """The largest network alone learns from the labels: its gradient has no part of the others."""
    trainer = make(mnas.spaces.mil4((2, 3), 4), "sandwich", random_paths=1)
    net = trainer.module
    images, labels = trainer.train.images[:8], trainer.train.labels[:8]
    alone = mnas.export(net, (1, 1))
    F.cross_entropy(alone(images), labels).backward()
    trainer.rule(Step(net, images, labels, FixedSampler((0, 1)), F.cross_entropy, 0.0, net))
    close(net.model[0].conv5x5.weight.grad, alone[0].weight.grad)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (4.0, 0.9)])
def test_a_path_learns_from_a_teacher(temperature, weight):
    space = uneven()
    torch.manual_seed(1)
    teacher = mnas.standalone(space, (1, 1)).eval()
    kept = copy.deepcopy(teacher.state_dict())
    trainer = make(
        space, "distilled", teacher=teacher, temperature=temperature, distill_weight=weight
    )
    naive = Naive(trainer)
    while not trainer.finished:
        images, labels = naive.batch()
        path = next(naive.sampler)
        naive.optimizer.zero_grad()
        logits = naive.model(images, path)
        loss = F.cross_entropy(logits, labels)
        taught = soft(logits, teacher(images).detach(), temperature)
        ((1 - weight) * loss + weight * temperature**2 * taught).backward()
        naive.step()
        assert trainer.advance() == pytest.approx(loss.item(), rel=1e-12)
        naive.compare(close)
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_teachers_that_do_not_fit_are_refused():
    space = uneven()
    good = mnas.standalone(space, (0, 0))
    for teacher, message in [
        (None, "teacher is a NoneType; expected a torch.nn.Module"),
        (good, r"teacher is in train mode; call teacher.eval\(\) first"),
        (nn.Linear(3, 10).eval(), "teacher does not take the images of space uneven"),
        (good[:-2].eval(), r"teacher has outputs of \(3, 2, 2\), the networks of space uneven"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(space, "distilled", teacher=teacher)
    with pytest.raises(ValueError, match="rule distilled needs teacher; give it"):
        make(space, "distilled")


@pytest.mark.usefixtures("double")
def test_the_dearer_of_two_paths_is_to_have_the_smaller_loss():
    """Written out: the loss of the path that costs more, less that of the other, where that is
    above 0. uneven() costs more with every index."""
    trainer = make(uneven(), "ranked", epochs=3, rank_weight=3.0)
    naive = Naive(trainer)
    wrong = 0
    while not trainer.finished:
        images, labels = naive.batch()
        a, b = next(naive.sampler), next(naive.sampler)
        naive.optimizer.zero_grad()
        losses = apart(naive.model, images, labels, [(2, 1), (0, 0), a, b])
        of_a, of_b = (F.cross_entropy(naive.model(images, path), labels) for path in (a, b))
        # By hand, of one filter and channel: 1, 9 or 25 products, and 9 or 25.
        price = {p: (1, 9, 25)[p[0]] + (9, 25)[p[1]] for p in (a, b)}
        if price[a] != price[b]:
            dearer, cheaper = (of_a, of_b) if price[a] > price[b] else (of_b, of_a)
            if dearer > cheaper:
                wrong += 1
                share = trainer.step / trainer.total_steps
                losses.append(3.0 * share * (dearer - cheaper))
        sum(losses).backward()
        naive.step()
        trainer.advance()
        naive.compare(close, statistics=False)
    assert wrong > 2


def test_the_rank_loss_raises_the_loss_of_the_cheaper_path():
    """The sign: along its gradient the dearer path comes to have the smaller loss."""
    trainer = make(mnas.spaces.mil4((2, 3), 4), "ranked", rank_weight=1.0)
    net, images = trainer.module, trainer.train.images
    dearer, cheaper = (1, 0), (0, 1)
    if mnas.cost(trainer.space, dearer).macs < mnas.cost(trainer.space, cheaper).macs:
        dearer, cheaper = cheaper, dearer
    labels = net(images, cheaper).argmax(1)  # what the cheaper one says is right

    def gap():
        of_dearer, of_cheaper = (F.cross_entropy(net(images, p), labels) for p in (dearer, cheaper))
        return (of_dearer - of_cheaper).item()

    before = gap()
    assert before > 0
    gradients = {}
    for progress in (0.0, 1.0):
        paths = iter([dearer, cheaper])
        net.zero_grad()
        trainer.rule(Step(net, images, labels, paths, F.cross_entropy, progress, net))
        gradients[progress] = [p.grad.clone() for p in net.parameters()]
    with torch.no_grad():  # what the rank loss alone adds
        for p, without, with_ in zip(net.parameters(), *gradients.values(), strict=True):
            p.sub_(1e-3 * (with_ - without))
    assert gap() < before


def test_ranked_compares_two():
    with pytest.raises(ValueError, match="random_paths=1; rule ranked compares two"):
        make(uneven(), "ranked", random_paths=1)


@pytest.mark.usefixtures("double")
def test_the_learning_rate_of_a_step_goes_by_the_size_of_its_path():
    trainer = make(uneven(), "dynamic", epochs=2)
    naive = Naive(trainer)
    # Parameters that the choices do not have in common: 9 weights a tap, biases and BatchNorm.
    fixed = 30 + 6 + 2 * (3 + 6) + 130
    sizes = {p: fixed + 9 * ((1, 9, 25)[p[0]] + (9, 25)[p[1]]) for p in trainer.space.paths()}
    assert all(mnas.cost(trainer.space, p).params == size for p, size in sizes.items())
    low, high = math.log(min(sizes.values())), math.log(max(sizes.values()))
    while not trainer.finished:
        images, labels = naive.batch()
        path = next(naive.sampler)
        naive.optimizer.zero_grad()
        loss = F.cross_entropy(naive.model(images, path), labels)
        loss.backward()
        power = 4 - 3.75 * (math.log(sizes[path]) - low) / (high - low)
        naive.step((1 - trainer.step / trainer.total_steps) ** (power - 1))
        assert trainer.advance() == pytest.approx(loss.item(), rel=1e-12)
        (rate,) = (group["lr"] for group in trainer.optimizer.param_groups)
        assert rate == trainer.scheduler.get_last_lr()[0]
        naive.compare(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12))


@pytest.mark.parametrize("policy", ["frozen", "torch"])
@pytest.mark.parametrize("groups", [2, 3])
def test_momentum_of_each_group_is_that_of_an_optimizer_of_its_own(groups, policy):
    """One stock SGD a group over the same separate modules, bit for bit, across a checkpoint. Under
    the stock policy what a step does not use has a gradient of zeros: the momentum of the group,
    and decay, move it on."""
    options = {"momentum_groups": groups, "decay_smallest": 1.0, "decay_largest": 1.0}
    options |= {"policy": policy}
    trainer = make(uneven(), "dynamic", epochs=3, **options)
    naive = Naive(trainer)
    of_group = [
        torch.optim.SGD(naive.model.parameters(), **_options(trainer.recipe)) for _ in range(groups)
    ]
    low, high = (math.log(mnas.cost(trainer.space, p).params) for p in ((0, 0), (2, 1)))
    used = []
    while not trainer.finished:
        images, labels = naive.batch()
        path = next(naive.sampler)
        share = (math.log(mnas.cost(trainer.space, path).params) - low) / (high - low)
        used.append(min(groups - 1, math.floor(share * groups)))
        naive.optimizer = of_group[used[-1]]
        naive.optimizer.zero_grad()
        F.cross_entropy(naive.model(images, path), labels).backward()
        for parameter in naive.model.parameters() if policy == "torch" else ():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        naive.step()
        trainer.advance()
        naive.compare()
        if trainer.step == 10:
            twin = make(uneven(), "dynamic", epochs=3, **options)
            twin.load_state_dict(copy.deepcopy(trainer.state_dict()))
            trainer = naive.trainer = twin
    assert set(used) == set(range(groups))


def test_one_group_is_the_rule_without_keys():
    plain = make(uneven(), "dynamic")
    plain.advance()
    assert set(plain.optimizer.state_dict()) == {"state", "param_groups"}


def test_a_stock_optimizer_has_no_keys():
    report = Report([], torch.zeros(()), state_key="small")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    message = r"^state_key='small' of a SGD; expected a mnas\.MaskedOptimizer$"
    with pytest.raises(ValueError, match=message), report.scaled(optimizer):
        pass


def test_a_step_that_fails_leaves_the_learning_rate():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    report = Report([], torch.zeros(()), lr=0.1)

    def step():
        with report.scaled(optimizer):
            assert optimizer.param_groups[0]["lr"] == 0.05
            raise KeyError

    with pytest.raises(KeyError):
        step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_networks_of_one_size_have_the_learning_rate_of_the_schedule():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(
            mnas.Choice({"a": nn.Conv2d(1, 10, 4), "b": nn.Conv2d(1, 10, 4)}), nn.Flatten()
        ),
        input_shape=(1, 4, 4),
    )
    plain, dynamic = make(space), make(space, "dynamic")
    for _ in range(STEPS):
        assert plain.advance() == dynamic.advance()


def test_a_rule_of_the_users_own():
    """Two paths, the mean of their losses, and half of the learning rate."""

    def halves(step):
        paths = [next(step.sampler), next(step.sampler)]
        losses = [step.loss(logits, step.labels) for logits in step.logits(paths)]
        total = sum(losses) / 2
        total.backward()
        return Report(list(zip(paths, losses, strict=True)), total, lr=0.5)

    trainer = make(uneven(), rule=halves)
    naive = Naive(trainer)
    for _ in range(3):
        images, labels = naive.batch()
        paths = [next(naive.sampler), next(naive.sampler)]
        naive.optimizer.zero_grad()
        sum(F.cross_entropy(naive.model(images, p), labels) for p in paths).div(2).backward()
        naive.step(0.5)
        (rate,) = trainer.scheduler.get_last_lr()
        trainer.advance()
        assert trainer.optimizer.param_groups[0]["lr"] == trainer.scheduler.get_last_lr()[0] != rate
    assert sum(trainer._updates.values()) == 6
    twin = make(uneven(), rule=halves)
    twin.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert twin.advance() == trainer.advance()
    with pytest.raises(ValueError, match="options drop of a rule of your own; expected none"):
        make(uneven(), rule=halves, drop=0.5)


def test_a_total_that_is_not_finite_stops_before_the_step():
    def broken(step):
        path = next(step.sampler)
        loss = step.loss(step.logits([path])[0], step.labels)
        loss.backward()
        return Report([(path, loss)], loss * float("inf"))

    trainer = make(uneven(), rule=broken)
    before = copy.deepcopy(trainer.module.state_dict()["model.8.weight"])
    with pytest.raises(DivergedError, match="loss is inf at step 1 on rule broken"):
        trainer.advance()
    assert torch.equal(trainer.module.state_dict()["model.8.weight"], before)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("sandwitch", {}, r"^rule='sandwitch' is unknown; expected one of single_path"),
        (["fair"], {}, r"^rule=\['fair'\] is unknown"),
        ("single_path", {"drop": 0.5}, r"^rule single_path has no option drop; expected none$"),
    ],
)
def test_unknown_rules_and_options_are_refused(rule, options, message):
    with pytest.raises(ValueError, match=message):
        make(uneven(), rule=rule, **options)
