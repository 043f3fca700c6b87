"""Scores of paths kept in a folder, against networks one by one."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import mnas
from mnas.storage.files import Folder
from mnas.studies import scored


class Images(SimpleNamespace):
    def __len__(self):
        return len(self.labels)


@pytest.fixture(scope="module")
def space():
    return mnas.spaces.get("nb_macro", 16)


@pytest.fixture(scope="module")
def net(space):
    torch.manual_seed(0)
    net = mnas.Supernet(space).eval()
    generator = torch.Generator().manual_seed(1)
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return net


PATHS = [(0, 1, 2, 0, 1, 2, 0, n) for n in range(3)]


def test_bits_and_divergence_equal_networks_one_by_one(space, net, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(13, 3, 16, 16, generator=generator)
    labels = torch.randint(10, (13,), generator=generator)
    before = copy.deepcopy(net.state_dict())
    scores = scored.Scores(tmp_path / "scores", {"images": 13})
    (tmp_path / "scores").mkdir()
    scores.score(net, PATHS, Images(images=images, labels=labels), None)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    correct = scored.read_correct(Folder(tmp_path / "scores", scored.FORMAT), 3)
    whole = copy.deepcopy(net)
    for layer in whole.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
    with torch.no_grad():
        q = F.softmax(whole(images, tuple(torch.ones(3) for _ in range(8))).double(), 1)
        for number, path in enumerate(PATHS):
            logits = mnas.export(net, path).eval()(images)
            assert correct[number].tolist() == (logits.argmax(1) == labels).tolist()
            p = F.softmax(logits.double(), 1)
            both = (p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)
            assert scores.rows[number]["val_kl"] == pytest.approx(float(both.mean()), rel=1e-4)

    # Rows from before are read, and continued as they are.
    folder = Folder(tmp_path / "scores", scored.FORMAT)
    row = {key: value for key, value in scores.rows[0].items() if key != "val_kl"}
    chunk = {**scores.chunks[0], "paths": 1}
    line, of_chunk = (scored.strict_json.lines([one]) for one in (row, chunk))
    folder.write({"rows.jsonl": line, "chunks.jsonl": of_chunk}, remove=["correct.npz"])
    older = scored.Scores(tmp_path / "scores", {"images": 13})
    older.score(net, PATHS, Images(images=images, labels=labels), None)
    assert older.correct is None
    assert [set(one) for one in older.rows] == [set(row)] * 3
    assert [one["val_loss"] for one in older.rows] == [one["val_loss"] for one in scores.rows]
