"""Mixtures: one layer with summed parameters against the weighted sum of the outputs of separate
layers."""

import pytest
import torch
from conftest import randomise
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import mnas


def conv(kernel, dilation=1, inputs=2, outputs=3, **options):
    return nn.Conv2d(
        inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, **options
    )


CHOICES = {
    "kernels": lambda: mnas.Choice({f"k{k}": conv(k) for k in (3, 1, 7, 5)}),
    "without bias": lambda: mnas.Choice({f"k{k}": conv(k, bias=False, stride=2) for k in (3, 5)}),
    "depthwise": lambda: mnas.Choice(
        {f"k{k}": conv(k, inputs=2, outputs=2, groups=2) for k in (3, 5)}
    ),
    "same": lambda: mnas.Choice(
        {
            "k3": nn.Conv2d(2, 3, 3, padding="same"),
            "k5": nn.Conv2d(2, 3, 5, padding=2),
            "even": conv(1),
        }
    ),
    "many of a size": lambda: mnas.Choice({f"c{i}": conv(3) for i in range(8)}),
    "nested": lambda: mnas.Choice({f"k{k}": conv(k) for k in (1, 3, 5)}, nested=True),
    "nested dilations": lambda: mnas.Choice(
        {"d1": conv(3), "d2": conv(3, 2), "k5": conv(5)}, nested=True
    ),
    "transposed": lambda: mnas.Choice(
        {f"k{k}": nn.ConvTranspose2d(2, 3, k, padding=k // 2) for k in (3, 5)}
    ),
    "one": lambda: mnas.Choice({"k3": conv(3)}),
}


def make(name):
    torch.manual_seed(0)

    def build():
        return nn.Sequential(
            nn.Conv2d(1, 2, 1), CHOICES[name](), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )

    net = mnas.Supernet(mnas.SearchSpace(build, input_shape=(1, 9, 9))).double()
    randomise(net)
    (number,) = map(len, net.space.choices)
    return (
        net,
        torch.randn(number, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 1, 9, 9).double(),
    )


def separate(net, weights, x):
    """The naive mixture: every candidate by itself on the same input, and the sum of what they put
    out."""
    stem, _, *tail = net.model
    x = stem(x)
    x = sum(w * net.choices[0].candidate(index)(x) for index, w in enumerate(weights.unbind()))
    return nn.Sequential(*tail)(x)


@pytest.mark.parametrize("name", CHOICES)
def test_a_mixture_is_the_weighted_sum_of_the_outputs(name):
    net, weights, x = make(name)
    gradients = {}
    for form in (net, separate):
        net.zero_grad()
        weights.grad = None
        y = net(x, (weights,)) if form is net else separate(net, weights, x)
        y.square().sum().backward()
        gradients[form] = [y.detach(), weights.grad, *(p.grad for p in net.parameters())]
    for one, several in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, several, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["kernels", "nested dilations"])
def test_gradcheck(name):
    net, weights, x = make(name)
    names, values = zip(
        *[(n, p.detach().requires_grad_()) for n, p in net.named_parameters()], strict=True
    )

    def f(alphas, *tensors):
        return torch.func.functional_call(
            net, dict(zip(names, tensors, strict=True)), (x, (alphas,))
        )

    assert torch.autograd.gradcheck(f, (weights, *values))


def test_one_convolution_runs_for_all():
    net, weights, x = make("many of a size")
    calls = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, _, args=(), kwargs=None):
            calls.append(function)
            return function(*args, **(kwargs or {}))

    with Count():
        net(x, (weights,))
    assert (
        sum(function in (torch.conv2d, F.conv2d) for function in calls) == 2
    )  # the stem and the mixture


def test_indices_and_mixtures_in_one_network_train_what_they_use(small):
    net = mnas.Supernet(small)
    alphas = torch.zeros(2, requires_grad=True)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, [*net.parameters(), alphas], lr=0.1)
    before = {path: mnas.export(net, path).state_dict() for path in small.paths()}
    net(torch.randn(4, 1, 28, 28), (alphas.softmax(0), 1)).square().sum().backward()
    optimizer.step()
    moved = {
        path: {
            k: not torch.equal(v, before[path][k])
            for k, v in mnas.export(net, path).state_dict().items()
        }
        for path in small.paths()
    }
    assert all(moved[0, 1].values())
    assert all(moved[1, 1].values())
    assert moved[0, 0] == {
        key: not key.startswith("3.") for key in moved[0, 0]
    }  # the second 3x3 took no part
    assert alphas.detach().ne(0).all()


def test_a_mixture_of_one_is_the_path(small):
    net, x = mnas.Supernet(small).double(), torch.randn(3, 1, 28, 28).double()
    for path in small.paths():
        chosen = [F.one_hot(torch.tensor(i), 2).double() for i in path]
        torch.testing.assert_close(net(x, chosen), net(x, path), rtol=1e-12, atol=1e-12)


def bn():
    return nn.Sequential(conv(3), nn.BatchNorm2d(3))


def hooked(kernel):
    layer = conv(kernel)
    layer.register_forward_hook(lambda _, __, y: y.relu())
    return layer


def hooked_before(kernel):
    layer = conv(kernel)
    layer.register_forward_pre_hook(lambda m, inputs: inputs[0] * m.kernel_size[0])
    return layer


def normed(kernel):
    return nn.utils.parametrizations.weight_norm(conv(kernel))


def buffered(kernel):
    layer = conv(kernel)
    layer.register_buffer("scale", torch.ones(()))
    return layer


SUMS = {
    "normalisation": {"a": bn(), "b": bn()},
    "identity": {"a": nn.Identity(), "b": conv(3, outputs=2)},
    "in place": {"a": nn.ReLU(inplace=True), "b": conv(3, outputs=2)},
    "padding": {"a": nn.Conv2d(2, 3, 3, padding="same"), "b": conv(5)},
    "centres": {"a": conv(3), "b": nn.Conv2d(2, 3, 5, padding=(2, 2), padding_mode="circular")},
    "bias": {"a": conv(3, bias=False), "b": conv(5)},
    **{make.__name__: {"a": make(3), "b": make(5)} for make in (hooked, hooked_before, normed)},
    "buffered": {"a": buffered(3), "b": buffered(5)},
}
NESTED_SUMS = {
    "dilations apart": ({"d2": conv(3, 2), "k5": conv(5)}, ("weight",)),
    "none as large as the canvas": ({"d1": conv(3), "d2": conv(3, 2)}, ("*running*",)),
}


@pytest.mark.parametrize("case", [*SUMS, *NESTED_SUMS])
def test_what_is_no_single_layer_is_the_sum_of_the_outputs(case):
    if case in SUMS:
        choice = mnas.Choice(SUMS[case])
    else:
        candidates, apart = NESTED_SUMS[case]
        separate = apart if apart == ("weight",) else ()
        choice = mnas.Choice(candidates, nested=True, separate=separate)
    choice = choice.double()
    weights = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 2, 9, 9).double()
    y = choice.mixture(weights)(x.clone())
    expected = sum(w * choice.candidate(i)(x.clone()) for i, w in enumerate(weights))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.pow(3).sum().backward()  # the sum of what BatchNorm puts out is none
    assert weights.grad.abs().min() > 0


def test_outputs_of_other_shapes_have_no_sum():
    choice = mnas.Choice({"a": conv(3, stride=2), "b": conv(5)})
    with pytest.raises(ValueError, match=r"outputs of shapes .* have no sum"):
        choice.mixture(torch.ones(2))(torch.zeros(1, 2, 9, 9))


@pytest.mark.parametrize(
    "weights", [torch.ones(3), torch.ones(2, 1), torch.ones(2, dtype=torch.int64), torch.ones(())]
)
def test_weights_of_another_shape_are_refused(small, weights):
    with pytest.raises(
        ValueError, match="expected 2 floating numbers, one for each of conv3x3, conv5x5"
    ):
        mnas.Supernet(small)(torch.zeros(1, 1, 28, 28), (weights, 0))


def test_the_other_entries_are_checked(small):
    net = mnas.Supernet(small)
    with pytest.raises(ValueError, match="must have 2 indices"):
        net(torch.zeros(1, 1, 28, 28), (torch.ones(2),))
    with pytest.raises(ValueError, match="expected an index below 2"):
        net(torch.zeros(1, 1, 28, 28), (torch.ones(2), 2))
    with pytest.raises(ValueError, match="must have 2 indices"):
        net(torch.zeros(1, 1, 28, 28), torch.ones(2))


@pytest.mark.parametrize("case", ["kernels", "depthwise", "nested", "normalisation"])
def test_exact_zeros_that_need_no_gradient_do_not_run(case):
    """They are as if the mixture had never had them: no gradient, no statistics, no step."""
    if case == "normalisation":
        torch.manual_seed(0)

        def build():
            choice = mnas.Choice({"a": bn(), "b": bn(), "c": bn()})
            return nn.Sequential(nn.Conv2d(1, 2, 1), choice, nn.AdaptiveAvgPool2d(2), nn.Flatten())

        net = mnas.Supernet(mnas.SearchSpace(build, input_shape=(1, 9, 9))).double()
        x = torch.randn(2, 1, 9, 9).double()
    else:
        net, _, x = make(case)
    (number,) = map(len, net.space.choices)
    weights = torch.tensor([0.0, *[0.5] * (number - 1)], dtype=torch.float64)
    choice = net.choices[0]
    buffers = {name: value.clone() for name, value in choice.named_buffers()}
    y = net(x, (weights,))
    stem, _, *tail = net.model
    parts = [w * choice.candidate(i)(stem(x)) for i, w in enumerate(weights) if w]
    torch.testing.assert_close(y, nn.Sequential(*tail)(sum(parts)), rtol=1e-12, atol=1e-12)
    net.zero_grad()
    net(x, (weights,)).pow(3).sum().backward()
    used = {id(p) for i in range(1, number) for p in choice.parameters_of(i)}
    for parameter in choice.parameters():
        assert (parameter.grad is not None) is (id(parameter) in used)
    assert len(used) < len(list(choice.parameters())) or case == "nested"
    for name, value in choice.named_buffers():
        assert torch.equal(value, buffers[name]) is name.startswith("a.")
    learned = weights.clone().requires_grad_()
    net(x, (learned,)).pow(3).sum().backward()
    assert learned.grad[0] != 0
    assert all(parameter.grad is not None for parameter in choice.parameters())


def test_a_mixture_of_zeros_alone_is_refused(small):
    with pytest.raises(ValueError, match="all 2 weights of a mixture are 0; expected another"):
        mnas.Supernet(small)(torch.zeros(1, 1, 28, 28), (torch.zeros(2), 0))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # within torch
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # in older ones
def test_forward_derivatives_by_weights_of_zero_are_kept(small):
    net, x = mnas.Supernet(small).double(), torch.randn(2, 1, 28, 28).double()
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    towards = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weights, towards)
        slope = forward_ad.unpack_dual(net(x, (dual, 0)).sum()).tangent
    learned = weights.clone().requires_grad_()
    net(x, (learned, 0)).sum().backward()
    torch.testing.assert_close(slope, learned.grad[1])
