"""Spaces whose function loads weights, and does not say so."""

import pytest
import torch
from conftest import ROOT
from running import in_process
from torch import nn

import mnas


def layers():
    """Constants, identities and few values among what is drawn."""
    recurrent = nn.LSTM(4, 4, batch_first=True)
    with torch.no_grad():
        recurrent.bias_hh_l0[4:8] = 1.0  # of the gate that forgets
    same, blur, none = nn.Linear(4, 4), nn.Conv1d(6, 6, 3, padding=1, groups=6), nn.Linear(4, 4)
    nn.init.eye_(same.weight)
    nn.init.zeros_(none.weight)
    with torch.no_grad():
        blur.weight[:] = torch.tensor([0.25, 0.5, 0.25])
    return same, blur, none


class Table(nn.Module):
    """Places by sines, which train; and a scale."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.outer(torch.arange(6.0), torch.rand(4).new_ones(4)).sin())
        self.scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, x):
        return self.scale * (x + self.places)


def tokens():
    return nn.Sequential(
        Table(),
        *layers(),
        nn.BatchNorm1d(6),
        nn.LayerNorm(4),
        mnas.Choice({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3, bias=False)}),
    )


def drawn_by_rule():
    return mnas.SearchSpace(tokens, name="rules", example=torch.zeros(2, 6, 4))


def model():
    kernels = {f"conv{k}x{k}": nn.Conv2d(1, 8, k, padding=k // 2) for k in (3, 5)}
    stem = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
    head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(*stem, mnas.Choice(kernels, nested=True), *head)


def loaded(*some, half=False):
    """A build that loads these of the model's tensors, by the beginnings of their names."""
    with torch.random.fork_rng(devices=[]):
        trained = model().state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(100)
        for tensor in trained.values():
            if tensor.is_floating_point():
                tensor.normal_(std=0.1)
                if half:
                    tensor.copy_(tensor.bfloat16())

    def build():
        made = model()
        kept = {k: v for k, v in trained.items() if k.startswith(some)}
        made.load_state_dict(kept, strict=False)
        return made

    return build


def test_what_rules_and_draws_make_is_random_enough():
    torch.manual_seed(0)
    for space in (drawn_by_rule(), mnas.SearchSpace(model), mnas.spaces.mil4_nested()):
        torch.manual_seed(3)
        network = mnas.standalone(space, space.sample(torch.Generator().manual_seed(0)))
        after = torch.rand(3)
        torch.manual_seed(3)
        again = mnas.standalone(space, space.sample(torch.Generator().manual_seed(0)))
        assert torch.equal(after, torch.rand(3))  # looking draws nothing
        for key, value in network.state_dict().items():
            assert torch.equal(value, again.state_dict()[key])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("some", "named"),
    [
        (("",), "0.weight"),
        (("1.",), None),  # a BatchNorm of one channel: a number, which may be a rule's
        (("2.",), "2.conv3x3:weight"),
        (("2.conv5x5",), "2.conv5x5:weight"),
        (("6.bias",), "6.bias"),
    ],
)
def test_loaded_weights_are_named(some, named, half):
    space = mnas.SearchSpace(loaded(*some, half=half), name="mine")
    if named is None:
        mnas.standalone(space, (0,))
        return
    message = f"space mine: {named} is the same in every model .*; give SearchSpace"
    for _ in range(2):
        with pytest.raises(ValueError, match=message) as refused:
            mnas.standalone(space, (0,))
    assert "\n" not in str(refused.value)
    mnas.Supernet(space)  # begins with them, as it should
    mnas.standalone(mnas.SearchSpace(loaded(*some), fresh=model), (0,))
    mnas.standalone(mnas.SearchSpace(loaded(*some), fresh=loaded(*some)), (0,))  # meant so


def test_a_function_that_sets_the_seed_is_named():
    def build():
        torch.manual_seed(0)
        return model()

    with pytest.raises(ValueError, match=r"0\.weight is the same in every model .* sets no seed"):
        mnas.standalone(mnas.SearchSpace(build), (0,))


def test_training_from_scratch_refuses_in_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "own.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests' / 'space')!r})\n"
        "import mnas\nfrom test_random_start import loaded\n\n\n"
        "def space():\n    return mnas.SearchSpace(loaded('2.'), name='own')\n"
    )
    mine = ("--space", f"{tmp_path / 'own.py'}:space", "--limit-train", 128)
    out = tmp_path / "run"
    for command, *line in (
        ("train", "--mode", "scratch", "--arch", "conv3x3", "--epochs", 1, "--out", out),
        ("train", "--mode", "scratch", "--arch", "all", "--epochs", 1, "--out", out),
        ("study", "--out", out, "--runs", tmp_path / "runs"),
    ):
        done = in_process(monkeypatch, capsys, command, *mine, *line, validation=100)
        status, printed, error = done
        assert (status, printed, error.count("\n")) == (2, "", 1)
        assert error.startswith("error: ")
        assert "2.conv3x3:weight is the same in every model" in error
        assert not out.exists()  # nor has a supernet been trained before
        assert not (tmp_path / "runs").exists()
