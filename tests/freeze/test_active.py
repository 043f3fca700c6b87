"""What is active, at odd moments: gradients set by hand, passes that fail, hooks of others, resets
of every kind."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mnas
from mnas.freeze.active import Mask, activity_of

ROWS = {"weight": torch.tensor([True, False, True])[:, None]}
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def layer():
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias=False)


def three():
    """A choice of three linear layers, and another layer behind it."""
    torch.manual_seed(0)
    space = mnas.SearchSpace(
        lambda: nn.Sequential(
            mnas.Choice({n: nn.Linear(4, 4, bias=False) for n in "abc"}), nn.Linear(4, 4)
        ),
        input_shape=(4,),
    )
    return mnas.Supernet(space)


def sgd(module, **options):
    return mnas.MaskedOptimizer(
        torch.optim.SGD, module, **{"lr": 0.1, "weight_decay": 0.1, **options}
    )


def own(net):
    """The weights of the candidates."""
    (choice,) = net.choices
    return [candidate.weight for candidate in choice.children()]


def moved(net, act):
    """Which rows of a layer, or candidates of the choice, the action moves."""
    tensors = [net.weight] if isinstance(net, nn.Linear) else own(net)
    before = [tensor.detach().clone() for tensor in tensors]
    act()
    if isinstance(net, nn.Linear):
        return net.weight.ne(before[0]).any(1).tolist()
    return [bool(now.ne(then).any()) for now, then in zip(tensors, before, strict=True)]


def test_optimizer_in_the_backward_pass():
    """torch's tutorial pattern: each parameter is stepped by a hook as soon as its gradient is
    there."""
    net, twin = three(), three()
    optimizers = {p: sgd([p]) for p in net.parameters()}
    for parameter in net.parameters():

        def hook(p):
            optimizers[p].step()
            optimizers[p].zero_grad()

        parameter.register_post_accumulate_grad_hook(hook)
    together = sgd(twin)
    for path in ((0,), (2,), (0,)):
        assert moved(net, lambda p=path: net(X, p).sum().backward()) == [
            c == path[0] for c in range(3)
        ]
        together.zero_grad()
        twin(X, path).sum().backward()
        together.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_a_parameter_that_is_thawed_under_a_mask_is_masked():
    net = layer()
    net.weight.requires_grad_(False)
    mask = mnas.GradientMask(net, ROWS)
    assert not net.weight.requires_grad
    net.weight.requires_grad_(True)
    optimizer = sgd(net)
    net(X).sum().backward()
    assert net.weight.grad[1].eq(0).all()
    mask.remove()
    assert moved(net, optimizer.step) == [True, False, True]


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("on purpose")


def test_a_backward_pass_that_failed_leaves_nothing_behind():
    net = three()
    optimizer = sgd(net)
    with pytest.raises(RuntimeError, match="on purpose"):
        net(Fails.apply(net(X, (2,)).sum() * X), (0,)).sum().backward()
    for parameter in net.parameters():
        parameter.grad = None
    net(X, (1,)).sum().backward()
    assert moved(net, optimizer.step) == [False, True, False]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant):
    """With reentrant ones a backward pass runs inside another, here both over the same
    parameters."""
    net, plain = three(), three()
    x = X.clone().requires_grad_()
    y = checkpoint(lambda x: net(x, (2,)), net(x, (0,)), use_reentrant=reentrant)
    (y + net(x, (0,))).square().sum().backward()
    z = plain(plain(X, (0,)), (2,)) + plain(X, (0,))
    z.square().sum().backward()
    for ours, theirs in zip(own(net)[::2], own(plain)[::2], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert own(net)[1].grad is None
    optimizers = sgd(net), sgd(plain)
    assert moved(net, optimizers[0].step) == moved(plain, optimizers[1].step) == [True, False, True]


def test_a_hook_that_changes_the_gradient_in_place_stays_inside_the_path():
    net = three()
    twin = copy.deepcopy(net)
    for weight, other in zip(own(net), own(twin), strict=True):
        weight.register_hook(lambda grad: grad.add_(1.0))
        other.register_hook(lambda grad: grad + 1.0)
    optimizers = [sgd(net), sgd(twin)]
    for n, optimizer in zip((net, twin), optimizers, strict=True):
        n(X, (1,)).sum().backward()
        assert moved(n, optimizer.step) == [False, True, False]
    assert torch.equal(own(net)[1].grad, own(twin)[1].grad)


def test_a_hook_that_came_before_ours_and_changes_the_gradient_in_place():
    net = three()
    for candidate in net.choices[0].children():
        candidate.weight = nn.Parameter(candidate.weight.detach().clone())
        candidate.weight.register_hook(lambda grad: grad.add_(1.0))
    net(X, (1,)).sum().backward()
    first, second, third = (weight.grad for weight in own(net))
    assert first is third is None
    assert second.ne(0).all()
    with mnas.GradientMask(net, {"model.0.b.weight": False}):
        net(X, (1,)).sum().backward()
    assert torch.equal(own(net)[1].grad, second)


def test_batched_gradients():
    net = three()
    weight = own(net)[1]
    y = net(X, (1,)).sum(1)
    jacobian = torch.autograd.grad(
        y, weight, torch.eye(5), is_grads_batched=True, retain_graph=True
    )[0]
    rows = torch.stack([torch.autograd.grad(y[i], weight, retain_graph=True)[0] for i in range(5)])
    torch.testing.assert_close(jacobian, rows)
    plain = layer()
    mnas.GradientMask(plain, ROWS)
    (batch,) = torch.autograd.grad(
        plain(X).sum(1), plain.weight, torch.eye(5), is_grads_batched=True
    )
    assert batch[:, 1].eq(0).all()
    assert batch[:, 0].ne(0).all()


def test_functional_transforms_of_a_supernet():
    net = three()
    exported = mnas.export(net, (1,))
    for transform in (lambda f: torch.func.grad(lambda x: f(x).sum()), torch.vmap):
        ours, theirs = (transform(f)(X) for f in (lambda x: net(x, (1,)), exported))
        torch.testing.assert_close(ours, theirs)


def test_nan_is_cut_also_where_a_second_derivative_is_wanted():
    for mask in (False, torch.zeros(3, 4, dtype=torch.bool)):
        net = layer()
        mnas.GradientMask(net, {"weight": mask})
        (grad,) = torch.autograd.grad(
            (net(X).square().sum() * float("nan")), net.weight, create_graph=True
        )
        assert grad.eq(0).all()
        assert not torch.signbit(grad).any()


def test_conjugate_gradients():
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    mnas.GradientMask(module, {"w": torch.tensor([True, False, True])})
    module.w.conj().backward(torch.full((3,), 1 + 2j))
    assert module.w.grad.tolist() == [1 - 2j, 0, 1 - 2j]


def test_masks_are_equal_by_content():
    entries = torch.tensor([[True, False]])
    assert Mask(entries) == Mask(entries.clone())
    assert hash(Mask(entries)) == hash(Mask(entries.clone()))
    assert Mask(entries) != Mask(entries.T)
    assert Mask(entries) != Mask(~entries)
    assert Mask(None) == Mask(None)
    assert Mask(None) != Mask(entries)
    assert Mask(entries) != "mask"
    assert pickle.loads(pickle.dumps(Mask(entries))) == Mask(entries)


def test_a_mask_that_a_module_holds_is_copied_and_pickled_with_it():
    net = layer()
    net.mask = mnas.GradientMask(net, ROWS)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.mask.module is twin
        twin(X).sum().backward()
        assert twin.weight.grad[1].eq(0).all()
        assert twin.weight.grad[0].ne(0).all()
    net.mask.remove()
    twin = copy.deepcopy(net)
    assert activity_of(twin.weight) is None


def test_nested_blocks_end_with_the_outermost():
    net = layer()
    mask = mnas.GradientMask(net, ROWS)
    with mask:
        with mask:
            pass
        assert activity_of(net.weight).masks
    assert activity_of(net.weight) is None


def test_copied_supernets_follow_their_own_passes():
    net = three()
    net(X, (1,)).sum().backward()
    assert [len(activity_of(weight).reached) for weight in own(net)] == [0, 1, 0]
    for twin in (copy.deepcopy(net), copy.deepcopy(three())):
        twin.zero_grad()
        twin(X, (2,)).sum().backward()
        assert all(activity_of(weight).of_paths for weight in own(twin))
        assert moved(twin, sgd(twin).step) == [False, False, True]
    twin = pickle.loads(pickle.dumps(net.choices[0]))
    assert not any(activity_of(parameter) for parameter in twin.parameters())
    assert moved(net, sgd(net).step) == [False, True, False]


def test_a_penalty_adds_to_what_passes_have_reached_by_then_and_makes_nothing_active():
    net, plain = three(), three()
    net(X, (0,)).sum().backward()
    penalty = sum(weight.square().sum() for weight in own(net))
    (net(X, (1,)).sum() + penalty).backward()
    plain(X, (0,)).sum().backward()
    plain(X, (1,)).sum().backward()
    for weight, alone in list(zip(own(net), own(plain), strict=True))[:2]:
        torch.testing.assert_close(weight.grad, alone.grad + 2 * weight.detach())
    assert own(net)[2].grad is None
    assert moved(net, sgd(net).step) == [True, True, False]


def test_a_gradient_in_another_layout_is_cut_as_well():
    mask = Mask(torch.tensor([[True, False, True], [False, False, True]]))
    grad = torch.ones(2, 3)
    for layout in (
        grad,
        grad.T.contiguous().T,
        torch.ones(2, 5)[:, :3],
        torch.ones(1).expand(2, 3),
        grad.double(),
    ):
        assert torch.equal(mask.keep(layout) != 0, mask.entries)


def test_nothing_is_left_of_a_mask_after_the_next_pass():
    net = layer()
    with mnas.GradientMask(net, ROWS):
        net(X).sum().backward()
    assert activity_of(net.weight) is not None  # its cut holds until the gradient is reset
    net.zero_grad()
    net(X).sum().backward()
    assert activity_of(net.weight) is None
    assert not net.weight._backward_hooks
    assert net.weight.grad.ne(0).all()


def test_passes_leave_no_notes_behind():
    net = three()
    for path in ((0,), (1,), (0,)):
        net(X, path).sum().backward()
    assert not any(activity_of(weight)._passes for weight in own(net))


def test_masks_of_the_same_hash_are_not_equal():
    a, b = Mask(torch.tensor([True, False])), Mask(torch.tensor([False, True]))
    b._hash = a._hash
    assert a != b


def test_a_pickled_mask_is_hashed_anew():
    entries = torch.tensor([True, False])
    mask = Mask(entries)
    mask._hash = 0  # another process hashes bytes in another way
    assert hash(pickle.loads(pickle.dumps(mask))) == hash(Mask(entries))


def test_a_module_that_changes_its_precision_stays_masked():
    net = layer()
    mnas.GradientMask(net, ROWS)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        net.to(dtype).zero_grad()
        net(X.to(dtype)).sum().backward()
        assert net.weight.grad.ne(0).any(1).tolist() == [True, False, True]


def test_an_expanded_penalty_in_a_pass_of_its_own():
    net = three()
    net(X, (1,)).sum().backward()
    expected = own(net)[1].grad + 1
    sum(weight.sum() for weight in own(net)).backward()  # its gradients are numbers, expanded
    assert torch.equal(own(net)[1].grad, expected)
    assert own(net)[0].grad is own(net)[2].grad is None
    assert moved(net, sgd(net).step) == [False, True, False]


def test_masked_execution_without_gradients():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(mnas.Choice({n: nn.Linear(4, 4) for n in "ab"})), input_shape=(4,)
    )
    net = mnas.Supernet(space, "masked")
    expected = net(X, (1,))
    with torch.no_grad():
        assert torch.equal(net(X, (1,)), expected)


def test_a_copy_made_inside_a_block_ends_with_its_own_block():
    mask = mnas.GradientMask(layer(), ROWS)
    with mask:
        twin = copy.deepcopy(mask)
    with twin:
        assert activity_of(twin.module.weight).masks
    assert activity_of(twin.module.weight) is None
