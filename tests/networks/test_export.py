"""Exported networks are plain torch: as modules, and as source in a process that has never heard of
mnas."""

import copy
import re
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from conftest import batches, randomise
from torch import nn

import mnas
from mnas.networks.source import source


def test_exported_modules_are_plain_compact_and_independent(small):
    net = mnas.Supernet(small)
    randomise(net)
    x, _ = next(batches(1))
    for path in small.paths():
        exported = mnas.export(net, path)
        assert all(type(module).__module__.startswith("torch.nn") for module in exported.modules())
        assert not any(
            type(value).__module__.startswith("mnas")
            for m in exported.modules()
            for value in vars(m).values()
        )
        for parameter in exported.parameters():
            assert type(parameter) is nn.Parameter
            assert parameter.is_leaf
            assert parameter.requires_grad
            assert parameter.is_contiguous()
            assert (
                parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()
            )
        expected = net(x, path)
        with torch.no_grad():
            for parameter in exported.parameters():
                parameter.zero_()
        assert torch.equal(net(x, path), expected)


def test_export_under_no_grad_is_trainable(small):
    with torch.no_grad():
        exported = mnas.export(mnas.Supernet(small), (0, 0))
    assert all(p.requires_grad for p in exported.parameters())


def test_both_executions_export_the_same(small):
    sliced, masked = mnas.Supernet(small), mnas.Supernet(small, "masked")
    masked.load_state_dict(sliced.state_dict())
    for path in small.paths():
        ours, theirs = mnas.export(sliced, path), mnas.export(masked, path)
        assert repr(ours) == repr(theirs)
        assert all(
            torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
        )


def test_standalone_starts_where_the_supernet_of_the_same_seed_starts(small):
    for path in small.paths():
        torch.manual_seed(4)
        alone = mnas.standalone(small, path)
        torch.manual_seed(4)
        net = mnas.Supernet(small)
        exported = mnas.export(net, path)
        assert all(
            torch.equal(a, b)
            for a, b in zip(alone.parameters(), exported.parameters(), strict=True)
        )
        assert not torch.equal(
            next(mnas.standalone(small, path).parameters()), next(alone.parameters())
        )


def test_exported_source_computes_the_same_where_mnas_cannot_be_imported(small, tmp_path):
    net = mnas.Supernet(small).eval()
    randomise(net)
    x, _ = next(batches(1, size=8))
    folders = [tmp_path / small.format(path) for path in small.paths()]
    for folder, path in zip(folders, small.paths(), strict=True):
        folder.mkdir()
        exported = mnas.export(net, path)
        (folder / "model.py").write_text(source(exported, "A test.", "Notes."))
        torch.save(exported.state_dict(), folder / "weights.pt")
        torch.save({"x": x, "logits": exported(x).detach()}, folder / "expected.pt")
    script = (
        "import os, sys; sys.modules['mnas'] = None\n"
        "import torch\n"
        "try:\n    import mnas\n    raise SystemExit('mnas was importable')\n"
        "except ImportError:\n    pass\n"
        "for folder in sys.argv[1:]:\n"
        "    os.chdir(folder)\n"
        "    sys.modules.pop('model', None)\n"
        "    import model\n"
        "    assert os.path.samefile(os.path.dirname(model.__file__), folder)\n"
        "    expected = torch.load('expected.pt', weights_only=True)\n"
        "    net = model.load()\n"
        "    assert not net.training\n"
        "    assert torch.equal(net(expected['x']), expected['logits'])\n"
    )
    command = [sys.executable, "-c", script, *map(str, folders)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)


def test_source_of_residual_blocks_computes_the_same():
    space = mnas.spaces.nb_macro()
    net = mnas.Supernet(space).eval()
    exported = mnas.export(net, (1, 2, 0, 1, 0, 2, 1, 0))
    text = source(exported, "NAS-Bench-Macro.")
    assert "mnas" not in text
    assert text.count("class Residual(nn.Sequential)") == 1
    namespace = {"__file__": "model.py", "__name__": "model"}
    exec(text, namespace)
    rebuilt = namespace["Net"]()
    rebuilt.load_state_dict(exported.state_dict())
    x = torch.randn(2, *space.input_shape)
    assert torch.equal(rebuilt.eval()(x), exported(x))


class Root(nn.Sequential):
    def forward(self, x):
        return x * super().forward(x)


class Leaning(nn.Sequential):
    def forward(self, x):
        return copy.copy(super().forward(x))


def rebuild(model):
    namespace = {"__file__": "model.py", "__name__": "model"}
    exec(source(model, "Rebuilt."), namespace)
    rebuilt = namespace["Net"]()
    rebuilt.load_state_dict(model.state_dict())
    return rebuilt.eval()


def test_source_keeps_layers_that_are_used_twice_and_a_root_of_its_own():
    relu, x = nn.ReLU(), torch.randn(2, 3)
    for model in (
        nn.Sequential(relu, nn.Linear(3, 3), relu, nn.Linear(3, 3)),
        Root(nn.Linear(3, 3), nn.Tanh()),
    ):
        assert torch.equal(rebuild(model)(x), model.eval()(x))


UNWRITABLE = {
    "settings": (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), "does not show ceil_mode"),
    "padding": (
        nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")),
        "no call of a layer of torch with plain values",
    ),
    "names": (nn.Sequential(OrderedDict(first=nn.ReLU())), "must have no names of their own"),
    "root": (nn.Linear(1, 1), "of a Linear; put it into a nn.Sequential"),
    "dtype": (nn.Sequential(nn.Linear(1, 1)).double(), "in torch.float64; take model.float()"),
    "imports": (nn.Sequential(Leaning(nn.ReLU())), "it uses {'copy'} of its file"),
    "our name": (nn.Sequential(type("Net", (nn.Sequential,), {})()), "two classes named Net"),
    "no file": (
        nn.Sequential(type("Typed", (nn.Sequential,), {"__module__": "nowhere"})()),
        "it is in no file",
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_source_is_refused_where_it_would_make_something_else(case):
    model, message = UNWRITABLE[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        source(model, "Refused.")


def test_source_covers_nested_sequences_and_refuses_unknown_classes():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, bias=False), nn.BatchNorm2d(2)), nn.Flatten()
    )
    namespace = {"__file__": "model.py", "__name__": "model"}
    exec(source(model, "Nested."), namespace)
    rebuilt = namespace["Net"]()
    assert repr(list(rebuilt)) == repr(list(model))
    assert rebuilt.state_dict().keys() == model.state_dict().keys()

    class Own(nn.Module):
        pass

    with pytest.raises(ValueError, match="cannot write the source of Own"):
        source(nn.Sequential(Own()), "Own.")


def test_a_layer_that_keeps_what_it_computed_is_exported():
    """As the old spectral_norm, whose weight is an attribute that belongs to a graph."""

    def build():
        layers = {n: nn.utils.spectral_norm(nn.Linear(4, 3)) for n in "ab"}
        return nn.Sequential(mnas.Choice(layers))

    net = mnas.Supernet(mnas.SearchSpace(build, input_shape=(4,)))
    x = torch.randn(2, 4)
    net(x, (0,)).sum().backward()
    exported = mnas.export(net, (0,))
    assert torch.equal(exported.eval()(x), net.eval()(x, (0,)))
