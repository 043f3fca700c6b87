"""What counts as a path's gradient: whatever goes through a candidate, however it is called."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import mnas

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def model(nested=False, a=None):
    torch.manual_seed(0)
    choice = mnas.Choice({"a": a or nn.Linear(4, 4), "b": nn.Linear(4, 4)}, nested=nested)
    return nn.Sequential(nn.Linear(4, 4), choice, nn.ReLU(), nn.Linear(4, 2))


def supernet(**options):
    return mnas.Supernet(mnas.SearchSpace(lambda: model(**options), input_shape=(4,)))


def penalty(net):
    return sum(parameter.square().sum() for parameter in net.parameters())


def grads(module):
    return {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


@pytest.mark.parametrize("nested", [False, True])
def test_given_tensors_that_come_of_the_parameters_train_them(nested):
    """Noise on weights, or a first step of meta-learning, by torch.func.functional_call."""
    net = supernet(nested=nested)
    alone = mnas.export(net, (0,))
    for module, arguments in ((net, (X, (0,))), (alone, (X,))):
        tensors = {name: p * 1.5 for name, p in module.named_parameters()}
        torch.func.functional_call(module, tensors, arguments).square().sum().backward()
    used = [p.grad for p in net.parameters() if p.grad is not None]
    expected = [p.grad for p in alone.parameters()]
    assert len(used) == len(expected)
    for a, b in zip(used, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_candidate_that_is_called_by_itself_trains():
    net = supernet()
    net(X, (1,)).sum().backward()
    net.zero_grad()
    net.model[1].a(X).sum().backward()
    assert torch.equal(net.model[1].a.weight.grad, X.sum(0).expand(4, 4))


def test_a_module_of_a_path_that_was_made_without_gradients_trains():
    net = supernet()
    with torch.no_grad():
        path = net.subnet((0,))
    (path(X).square().sum() + penalty(net)).backward()
    assert net.model[1].a.weight.grad is not None
    assert net.model[1].b.weight.grad is None


@pytest.mark.parametrize("execution", ["sliced", "masked", "mixture"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_others_have_too_trains_with_them(execution, nested):
    """Also after a path that has run it."""
    net = supernet(nested=nested)
    net.tied = nn.Linear(4, 4, bias=False)
    choice = net.model[1]
    # All of a nested weight is in both candidates here.
    net.tied.weight = choice.get_parameter("a:weight") if nested else choice.a.weight
    first = [torch.tensor([0.5, 0.5])] if execution == "mixture" else (0,)
    with_path = {} if execution == "mixture" else {"execution": execution}
    net.subnet(first, **with_path)(X).sum().backward()
    net.zero_grad()
    (net.tied(X).sum() + 0 * net(X, (1,)).sum()).backward()
    assert torch.equal(net.tied.weight.grad, X.sum(0).expand(4, 4))


@pytest.mark.parametrize("nested", [False, True])
def test_frozen_parameters_stay_under_stock_rules_for_the_inactive(nested):
    net = supernet(nested=nested)
    net.model[1].requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, policy="torch", lr=0.1, weight_decay=0.1)
    net(X, (0,)).sum().backward()
    optimizer.step()
    after = net.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in after if key.startswith("model.1."))
    assert not torch.equal(after["model.3.weight"], before["model.3.weight"])


class Listed(nn.Module):
    """Reaches its layers by a list, a dict and a method of its own, not by the registry."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
        for number, layer in enumerate(self.layers):
            self.add_module(f"l{number}", layer)
        self.by_name = {"second": self.layers[1]}
        self.run = self._run

    def _run(self, x):
        return self.by_name["second"](torch.tanh(self.layers[0](x)))

    def forward(self, x):
        return self.run(x)


def test_candidates_that_reach_their_layers_in_their_own_way_train_as_by_themselves():
    net = supernet(a=Listed())
    alone = mnas.export(net, (0,))
    optimizers = [mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9)]
    optimizers.append(torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9))
    for _ in range(4):
        for optimizer, out in zip(optimizers, (net(X, (0,)), alone(X)), strict=True):
            optimizer.zero_grad()
            out.square().sum().backward()
            optimizer.step()
    for a, b in zip(mnas.export(net, (0,)).parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="candidate 'a' of choice 0 does not fit"):
        supernet(a=Listed(), nested=True)  # its shared tensors are not where it looks


class Rolled(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.layer = nn.LSTM(4, 4, bias=bias)

    def forward(self, x):
        return self.layer(x)[0]


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.weights = [self.weight]

    def forward(self, x):
        return x @ self.weights[0]


def test_what_is_shared_and_kept_elsewhere_too_is_refused():
    """But for the lists of recurrent layers, which follow their parameters."""
    with pytest.raises(ValueError, match="'a' keeps a parameter that is to be shared in another"):
        mnas.Choice({"a": Kept(), "b": Kept()}, nested=True)
    choices = {"a": Rolled(True), "b": Rolled(False)}
    net = mnas.Supernet(
        mnas.SearchSpace(
            lambda: nn.Sequential(mnas.Choice(choices, nested=True), nn.Linear(4, 2)),
            input_shape=(4,),
        )
    )
    alone = mnas.export(net, (0,))
    net(X, (0,)).square().sum().backward()
    alone(X).square().sum().backward()
    used = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    for a, b in zip(used, alone.parameters(), strict=True):
        assert torch.equal(a, b.grad)


def test_a_method_in_place_of_forward_is_a_part_of_the_candidate():
    layer = nn.Linear(4, 4)
    layer.forward = types.MethodType(lambda self, x: F.linear(x, 2 * self.weight), layer)
    net = supernet(a=layer)
    net(X, (0,)).sum().backward()
    assert net.model[1].a.weight.grad is not None


def test_calls_in_one_autocast_region_add_up_as_those_of_a_separate_module():
    net = supernet()
    alone = mnas.export(net, (0,))
    for run in (lambda x: net(x, (0,)), alone):
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(X).square().sum() + run(2 * X).square().sum()
        loss.backward()
    for a, b in zip(
        (p for p in net.parameters() if p.grad is not None), alone.parameters(), strict=True
    ):
        assert torch.equal(a.grad, b.grad)


def test_outputs_of_any_form_are_followed():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return {"y": [self.layer(x)]}

    class Take(nn.Module):
        def forward(self, x):
            return x["y"][0]

    build = lambda: nn.Sequential(mnas.Choice({"a": Pair(), "b": Pair()}), Take())  # noqa: E731
    net = mnas.Supernet(mnas.SearchSpace(build, input_shape=(4,)))
    (net(X, (1,)).sum() + penalty(net)).backward()
    assert net.model[0].a.layer.weight.grad is None
    assert net.model[0].b.layer.weight.grad is not None


def test_hooks_of_users_run_after_ours():
    """An optimizer in the backward pass meets no gradient of what is inactive."""
    net = supernet()
    moved = []
    for name, parameter in net.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: moved.append(name) if p.grad is not None else None
        )
    (net(X, (0,)).sum() + penalty(net)).backward()
    assert not [name for name in moved if ".b." in name]
    assert [name for name in moved if ".a." in name]


def test_a_parameter_that_is_registered_later_is_of_paths_too():
    net = supernet()
    net(X, (0,)).sum().backward()
    net.model[1].b.register_parameter("scale", nn.Parameter(torch.ones(4)))
    net.zero_grad()
    (net(X, (0,)).sum() + penalty(net)).backward()
    assert net.model[1].b.scale.grad is None


def test_a_replaced_candidate_trains_or_is_refused():
    net = supernet()
    net.model[1].b = nn.Linear(4, 4)
    (net(X, (0,)).sum() + penalty(net)).backward()
    assert net.model[1].b.weight.grad is None
    net(X, (1,)).sum().backward()
    assert net.model[1].b.weight.grad is not None
    net = supernet(nested=True)
    net.model[1].b = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="candidate 'b' has been replaced, and 'weight' of it"):
        net(X, (0,))


def test_layers_that_disjoint_candidates_have_in_common_are_refused():
    layer = nn.Linear(4, 4)
    candidates = {"a": layer, "b": nn.Sequential(nn.ReLU(), layer)}
    with pytest.raises(ValueError, match=r"candidates 'a' and 'b' have the same '1\.weight'"):
        mnas.Choice(candidates)
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    deep = mnas.Choice({f"d{d}": nn.Sequential(*layers[:d]) for d in (1, 2)}, nested=True)
    assert len(list(deep.parameters())) == 4


def test_sparse_gradients_of_what_is_shared_are_refused():
    layers = {f"w{w}": nn.Embedding(5, w, sparse=True) for w in (2, 3)}
    with pytest.raises(ValueError, match="candidate 'w2' has a Embedding with sparse=True"):
        mnas.Choice(layers, nested=True)
    mnas.Choice(layers)


def test_one_storage_where_there_can_be_one():
    net = supernet()
    choice = net.model[1]
    assert choice.merged["weight"].shape == (32,)
    torch.nn.utils.vector_to_parameters(torch.randn(70), net.parameters())
    assert choice.merged["weight"].shape == (32,)
    choice.a.bfloat16()
    twin = copy.deepcopy(net)
    assert torch.equal(twin.model[1].b.weight, choice.b.weight)
    with pytest.raises(ValueError, match="cannot lie in one storage: they differ in dtype"):
        _ = choice.merged


def test_shared_memory_stays_shared():
    net = supernet()
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
    net.share_memory()
    assert all(parameter.is_shared() for parameter in net.parameters())


@pytest.mark.parametrize("execution", ["sliced", "masked"])
def test_transforms_of_torch_func_see_nested_candidates(execution):
    build = lambda: nn.Sequential(  # noqa: E731
        mnas.Choice({f"k{k}": nn.Conv1d(1, 2, k, padding=k // 2) for k in (1, 3)}, nested=True)
    )
    net = mnas.Supernet(mnas.SearchSpace(build, input_shape=(1, 6)), execution).double()
    x = torch.randn(2, 1, 6, dtype=torch.float64)
    parameters = dict(net.named_parameters())

    def loss(tensors):
        return torch.func.functional_call(net, tensors, (x, (0,))).square().sum()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_penalty_beside_a_checkpointed_path_counts_or_is_refused(reentrant):
    net = mnas.Supernet(
        mnas.SearchSpace(
            lambda: nn.Sequential(nn.Linear(4, 4), mnas.Choice({n: nn.Linear(4, 4) for n in "ab"})),
            input_shape=(4,),
        )
    )

    def backward(checkpointed):
        net.zero_grad()
        x = torch.ones(3, 4, requires_grad=True)
        y = checkpoint(net, x, (0,), use_reentrant=reentrant) if checkpointed else net(x, (0,))
        (y.square().sum() + sum(p.square().sum() for p in net.parameters())).backward()
        return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}

    for _ in range(2):
        expected = backward(checkpointed=False)
        if reentrant:
            with pytest.raises(RuntimeError, match="checkpoint it with use_reentrant=False"):
                backward(checkpointed=True)
        else:
            found = backward(checkpointed=True)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[n], g) for n, g in expected.items())
