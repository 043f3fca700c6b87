"""The exactness table of docs/design.md, row by row, against separate modules under stock
optimizers."""

import pytest
import torch
from conftest import batches, randomise
from oracle import OPTIMIZERS, ModularMil4, assert_same_state, random_paths
from torch.nn import functional as F

import mnas

FORMS = [(name, form) for name in OPTIMIZERS for form in ("default", "foreach", "fused")]
FORMS.remove(("rmsprop", "fused"))  # torch has none
# Stock torch's fails where only some parameters have momentum already: nothing to compare with.
FORMS.remove(("sgd", "fused"))


def optimizer_of(name, form="default"):
    optimizer_class, options = OPTIMIZERS[name]
    return optimizer_class, {**options, **({} if form == "default" else {form: True})}


def make_pair(channels=(3, 5), hidden=7, execution="sliced"):
    space = mnas.spaces.mil4(channels, hidden)
    torch.manual_seed(1)
    net = mnas.Supernet(space, execution)
    torch.manual_seed(1)
    return space, net, ModularMil4(channels, hidden)


def merged(net):
    """The same-named parameters of the candidates of every choice."""
    for choice in net.choices:
        for key in ("weight", "bias"):
            yield [getattr(choice.module(index), key) for index in range(len(choice))]


def assert_same_training(net, ours, oracle, stock):
    """Weights and optimizer state of every candidate and of the head."""
    for parameters, candidates in zip(merged(net), oracle.candidates(), strict=True):
        for parameter, candidate in zip(parameters, candidates, strict=True):
            assert torch.equal(parameter, candidate)
            assert_same_state(ours.dense_state(parameter), stock.state.get(candidate, {}))
    head = [p for name, p in net.named_parameters() if name.split(".")[1] not in ("0", "3")]
    for parameter, reference in zip(head, oracle.head.parameters(), strict=True):
        assert torch.equal(parameter, reference)
        assert_same_state(ours.dense_state(parameter), stock.state.get(reference, {}))


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_interleaved_paths_equal_separate_modules(name, form):
    space, net, oracle = make_pair()
    optimizer_class, options = optimizer_of(name, form)
    ours, stock = (
        mnas.MaskedOptimizer(optimizer_class, net, **options),
        optimizer_class(oracle.parameters(), **options),
    )
    for path, (x, y) in zip(random_paths(space, 60), batches(60), strict=True):
        losses = []
        for forward, optimizer in ((net, ours), (oracle, stock)):
            optimizer.zero_grad()
            loss = F.cross_entropy(forward(x, path), y)
            loss.backward()
            optimizer.step()
            losses.append(loss)
        assert torch.equal(*losses)
    assert_same_training(net, ours, oracle, stock)
    for path in space.paths():
        for ours_p, theirs in zip(
            mnas.export(net, path).parameters(), oracle.used(path), strict=True
        ):
            assert torch.equal(ours_p, theirs)


def test_full_width_in_channels_last_equals_separate_modules():
    space, net, oracle = make_pair(channels=(16, 32), hidden=128)
    optimizer_class, options = optimizer_of("sgd")
    ours, stock = (
        mnas.MaskedOptimizer(optimizer_class, net, **options),
        optimizer_class(oracle.parameters(), **options),
    )
    for path, (x, y) in zip(random_paths(space, 50), batches(50, size=16), strict=True):
        x = x.to(memory_format=torch.channels_last)
        for forward, optimizer in ((net, ours), (oracle, stock)):
            optimizer.zero_grad()
            F.cross_entropy(forward(x, path), y).backward()
            optimizer.step()
    for path in space.paths():
        for ours_p, theirs in zip(
            mnas.export(net, path).parameters(), oracle.used(path), strict=True
        ):
            assert torch.equal(ours_p, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fixed_path_then_export_equals_standalone_trained_alone(name, small):
    optimizer_class, options = optimizer_of(name)
    for path in small.paths():
        torch.manual_seed(5)
        net = mnas.Supernet(small)
        torch.manual_seed(5)
        alone = mnas.standalone(small, path)
        ours = mnas.MaskedOptimizer(optimizer_class, net, **options)
        stock = optimizer_class(alone.parameters(), **options)
        for x, y in batches(50):
            for logits, optimizer in ((net(x, path), ours), (alone(x), stock)):
                optimizer.zero_grad()
                F.cross_entropy(logits, y).backward()
                optimizer.step()
        exported = mnas.export(net, path)
        for ours_p, theirs in zip(exported.parameters(), alone.parameters(), strict=True):
            assert torch.equal(ours_p, theirs)
        x, _ = next(batches(1, seed=9))
        assert torch.equal(exported(x), alone(x))


@pytest.mark.parametrize("training", [True, False])
def test_export_computes_what_the_path_computes(small, training):
    net = mnas.Supernet(small).train(training)
    randomise(net)
    x, _ = next(batches(1, size=32))
    for path in small.paths():
        exported = mnas.export(net, path)
        assert exported.training == training
        assert torch.equal(exported(x), net(x, path))


def test_paths_differ(small):
    """The canary: a mask that is ignored would pass every comparison of a thing with itself."""
    for execution in ("sliced", "masked"):
        net = mnas.Supernet(small, execution)
        randomise(net)
        x, _ = next(batches(1))
        logits = [net(x, path) for path in small.paths()]
        assert all(
            not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(logits) for b in logits[:i]
        )


@pytest.mark.parametrize("execution", ["sliced", "masked"])
@pytest.mark.parametrize(("name", "form"), [*FORMS, ("sgd", "fused")])
def test_inactive_entries_and_their_state_do_not_move(name, form, execution, small):
    torch.manual_seed(0)
    net = mnas.Supernet(small, execution)
    optimizer_class, options = optimizer_of(name, form)
    optimizer = mnas.MaskedOptimizer(optimizer_class, net, **options)
    for path, (x, y) in zip(random_paths(small, 20), batches(20), strict=True):
        before = [[p.detach().clone() for p in of_key] for of_key in merged(net)]
        states = [[optimizer.dense_state(p) for p in of_key] for of_key in merged(net)]
        optimizer.zero_grad()
        F.cross_entropy(net(x, path), y).backward()
        optimizer.step()
        for number, of_key in enumerate(merged(net)):
            for candidate, parameter in enumerate(of_key):
                same = torch.equal(parameter, before[number][candidate])
                assert same == (candidate != path[number // 2])
                if same:
                    assert parameter.grad is None
                    now, then = optimizer.dense_state(parameter), states[number][candidate]
                    assert now.keys() == then.keys()
                    assert all(torch.equal(value, then[key]) for key, value in now.items())


def test_masked_equals_sliced_in_float64(small):
    torch.manual_seed(2)
    sliced = mnas.Supernet(small).double()
    masked = mnas.Supernet(small, "masked").double()
    masked.load_state_dict(sliced.state_dict())
    optimizer_class, options = optimizer_of("sgd")
    optimizers = [mnas.MaskedOptimizer(optimizer_class, net, **options) for net in (sliced, masked)]
    for path, (x, y) in zip(random_paths(small, 50), batches(50, dtype=torch.float64), strict=True):
        masked.load_state_dict(
            sliced.state_dict()
        )  # per step: the same start, so that chaos does not add up
        logits = []
        for net, optimizer in zip((sliced, masked), optimizers, strict=True):
            optimizer.zero_grad()
            logits.append(net(x, path))
            F.cross_entropy(logits[-1], y).backward()
            optimizer.step()
        torch.testing.assert_close(logits[0], logits[1], rtol=1e-12, atol=1e-12)
        for a, b in zip(sliced.parameters(), masked.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_masked_equals_sliced_in_float32_per_step():
    """One step from the same start. The masked kernel sums the same products in another order, with
    zeros between: over 16 * 25 products float32 (eps 1.2e-7) errs by a few 1e-6 relative to the
    largest terms."""
    space, sliced, _ = make_pair(channels=(16, 32), hidden=128)
    masked = mnas.Supernet(space, "masked")
    optimizer_class, options = optimizer_of("sgd")
    for path, (x, y) in zip(random_paths(space, 12), batches(12, size=16), strict=True):
        masked.load_state_dict(sliced.state_dict())
        for net in (sliced, masked):
            optimizer = mnas.MaskedOptimizer(optimizer_class, net, **options)
            optimizer.zero_grad()
            F.cross_entropy(net(x, path), y).backward()
            optimizer.step()
        for a, b in zip(sliced.parameters(), masked.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("execution", ["sliced", "masked"])
def test_a_penalty_on_everything_reaches_only_what_is_active(small, execution):
    net = mnas.Supernet(small, execution)
    randomise(net)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9)
    path = (0, 1)
    x, y = next(batches(1))
    penalty = 0.1 * sum(p.square().sum() for p in net.parameters())
    (F.cross_entropy(net(x, path), y) + penalty).backward()
    for choice, active in zip(net.choices, path, strict=True):
        for index in range(len(choice)):
            for parameter in choice.parameters_of(index):
                assert (parameter.grad is not None) == (index == active)
                assert parameter.grad is None or parameter.grad.ne(0).any()
    reference = mnas.export(net, path)
    total = F.cross_entropy(reference(x), y) + 0.1 * sum(
        p.square().sum() for p in reference.parameters()
    )
    total.backward()
    for choice, active, layer in zip(net.choices, path, (reference[0], reference[3]), strict=True):
        for key, parameter in choice.module(active).named_parameters():
            reached = getattr(layer, key).grad
            torch.testing.assert_close(parameter.grad, reached, rtol=1e-5, atol=1e-6)
    before = mnas.export(net, (1, 0))
    optimizer.step()
    after = mnas.export(net, (1, 0))
    for k in (0, 3):
        assert torch.equal(before[k].weight, after[k].weight)
        assert torch.equal(before[k].bias, after[k].bias)


def test_accumulation_over_paths_equals_separate_modules(small):
    space, net, oracle = make_pair()
    optimizer_class, options = optimizer_of("adamw")
    ours, stock = (
        mnas.MaskedOptimizer(optimizer_class, net, **options),
        optimizer_class(oracle.parameters(), **options),
    )
    stream = batches(60)
    for first, second in zip(random_paths(space, 30), random_paths(space, 31)[1:], strict=True):
        (x, y), (x2, y2) = next(stream), next(stream)
        for forward, optimizer in ((net, ours), (oracle, stock)):
            optimizer.zero_grad()
            F.cross_entropy(forward(x, first), y).backward()
            F.cross_entropy(forward(x2, second), y2).backward()
            optimizer.step()
    assert_same_training(net, ours, oracle, stock)


@pytest.mark.parametrize(
    "reset", ["optimizer", "optimizer to zeros", "net", "net to zeros", "by hand"]
)
def test_every_way_to_reset_gradients_resets_what_is_active(small, reset):
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9, weight_decay=0.1)
    for path, (x, y) in zip([(0, 0), (1, 1), (1, 1)], batches(3), strict=True):
        if reset == "by hand":
            for parameter in net.parameters():
                parameter.grad = None
        else:
            target = optimizer if "optimizer" in reset else net
            target.zero_grad(set_to_none="zeros" not in reset)
        before = mnas.export(net, (0, 0))
        F.cross_entropy(net(x, path), y).backward()
        optimizer.step()
        after = mnas.export(net, (0, 0))
        moved = [not torch.equal(before[k].weight, after[k].weight) for k in (0, 3)]
        assert moved == [path[0] == 0, path[1] == 0]


def test_evaluating_between_backward_and_step_activates_nothing(small):
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, weight_decay=0.1)
    x, y = next(batches(1))
    before = mnas.export(net, (1, 1))
    F.cross_entropy(net(x, (0, 0)), y).backward()
    net(
        x, (1, 1)
    )  # with gradients enabled, and never used: in stock torch, too, its grad stays None
    with torch.no_grad():
        net(x, (1, 1))
    optimizer.step()
    after = mnas.export(net, (1, 1))
    assert torch.equal(before[0].weight, after[0].weight)


def test_a_gradient_of_zeros_is_active():
    """Dead ReLUs give zeros, not None: stock torch decays such weights, and so do we."""
    _, net, oracle = make_pair()
    optimizer_class, options = optimizer_of("adamw")
    ours, stock = (
        mnas.MaskedOptimizer(optimizer_class, net, **options),
        optimizer_class(oracle.parameters(), **options),
    )
    x, _ = next(batches(1))
    for forward, optimizer in ((net, ours), (oracle, stock)):
        (forward(x, (0, 1)) * 0).sum().backward()
        optimizer.step()
    assert_same_training(net, ours, oracle, stock)
