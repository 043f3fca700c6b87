"""Keys of optimizer state: MaskedOptimizer.use_state."""

import copy

import pytest
import torch

import mnas


def test_each_key_has_a_state_of_its_own_under_masks():
    """Two AdamW over the same tensors, a mask in each step, and a checkpoint between; a state that
    does not fit changes nothing."""
    torch.manual_seed(0)
    ours = torch.nn.Linear(6, 4)
    rows = torch.tensor([True, True, False, False])
    part = torch.nn.Parameter(ours.weight.detach()[rows].clone())  # what the mask leaves
    kept = ours.weight.detach()[~rows].clone()
    mnas.GradientMask(ours, {"weight": rows[:, None].expand(4, 6)})
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, [ours.weight], lr=0.1)
    stock = {key: torch.optim.AdamW([part], lr=0.1) for key in (None, "a", "b")}
    for number, key in enumerate([None, "a", "b", "a", "a", None, "b", "a"]):
        gradient = torch.randn(4, 6)
        optimizer.zero_grad()
        (ours.weight * gradient).sum().backward()
        part.grad = gradient[rows]
        optimizer.use_state(key)
        optimizer.step()
        stock[key].step()
        assert torch.equal(ours.weight[rows], part)
        assert torch.equal(ours.weight[~rows], kept)
        if number == 4:
            saved = copy.deepcopy(optimizer.state_dict())
            assert (saved["key"], set(saved["other_keys"])) == ("a", {None, "b"})
            optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, [ours.weight], lr=0.1)
            optimizer.load_state_dict(saved)
            bad = copy.deepcopy(saved)
            bad["other_keys"]["b"][0]["shape"] = (9, 9)
            with pytest.raises(ValueError, match="does not fit"):
                optimizer.load_state_dict(bad)
            assert set(optimizer.state_dict()["other_keys"]) == {None, "b"}
