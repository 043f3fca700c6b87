"""Data: the embedded MNIST is MNIST, the split is fixed, and what is missing or damaged is said."""

import gzip
import hashlib
import re
import shutil
import struct
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torchvision import datasets

from mnas import data

MD5 = {  # of the unpacked files, as published with the data set
    "train-images-idx3-ubyte.xz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.xz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.xz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.xz": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.mark.parametrize("name", MD5)
def test_embedded_files_are_mnist(name):
    array = data.read_idx_xz(name)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    assert hashlib.md5(header + array.tobytes()).hexdigest() == MD5[name]


def test_split_and_normalisation(mnist):
    assert [len(s) for s in (mnist.train, mnist.validation, mnist.test)] == [55_000, 5_000, 10_000]
    everything = torch.cat([mnist.train.images, mnist.validation.images])
    assert everything.shape == (60_000, 1, 28, 28)
    assert abs(float(everything.double().mean())) < 1e-5
    assert abs(float(everything.double().std()) - 1) < 1e-5
    raw = data.read_idx_xz("train-images-idx3-ubyte.xz")
    torch.testing.assert_close(
        mnist.validation.images[3, 0], torch.from_numpy((raw[47] / 255 - 0.1307) / 0.3081).float(), atol=1e-3, rtol=0
    )
    labels = data.read_idx_xz("train-labels-idx1-ubyte.xz")
    assert mnist.validation.labels.tolist() == labels[11::12].tolist()
    assert mnist.train.labels[:12].tolist() == [*labels[:11], labels[12]]


def test_damage_is_noticed(tmp_path):
    name = "t10k-labels-idx1-ubyte.xz"
    content = (resources.files("mnas") / "mnist" / name).read_bytes()
    for damaged in (content[:-7], content[:99] + bytes([content[99] ^ 1]) + content[100:], b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(data.DataError, match=r"t10k-labels-idx1-ubyte\.xz is damaged: SHA-256"):
            data.read_idx_xz(name, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(data.DataError, match="cannot read"):
        data.read_idx_xz(name, tmp_path)


def write_idx(file, array):
    code = {"uint8": 8, "int32": 12}[str(array.dtype)]
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    file.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize("dataset", data.TORCHVISION)
def test_torchvision_sets_are_read_from_the_files_that_the_error_names(dataset, tmp_path, no_network):
    with pytest.raises(data.DataError) as caught:
        data.load(dataset, tmp_path)
    assert not any(tmp_path.rglob("*ubyte"))
    files, folder = re.search(r"put (.*) into (.*)/", str(caught.value)).groups()
    random = np.random.default_rng(0)
    for number, name in enumerate(files.split(", ")):
        n = 60 if number < 2 else 20
        labels = random.integers(10, size=(n, 8) if "idx2" in name else n)
        kind = np.int32 if "idx2" in name else np.uint8
        pictures = random.integers(256, size=(n, 28, 28), dtype=np.uint8)
        write_idx(Path(folder) / name, pictures if "images" in name else labels.astype(kind))
    loaded = data.load(dataset, tmp_path)
    assert len(loaded.train) + len(loaded.validation) == 60
    assert len(loaded.test) == 20
    assert loaded.test.labels.shape == (20,)
    first = Path(folder) / files.split(", ")[0]
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(data.DataError, match="cannot load"):
        data.load(dataset, tmp_path)


def test_unknown_dataset():
    with pytest.raises(data.DataError, match="'cifar' is unknown; expected one of mnist, fashion-mnist"):
        data.load("cifar")


@pytest.mark.skipif(
    not (ROOT.parent / "shared/data/fashion-mnist").exists(), reason="needs a copy of Fashion-MNIST beside the checkout"
)
def test_real_fashion_mnist(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (ROOT.parent / "shared/data/fashion-mnist").glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    loaded = data.load("fashion-mnist", tmp_path)
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [55_000, 5_000, 10_000]
    reference = datasets.FashionMNIST(tmp_path, train=False)
    assert loaded.test.labels.tolist() == reference.targets.tolist()
    assert loaded.test.images[0].amax() > 1


def test_shifted_pictures_move_each_its_own_way():
    images = torch.zeros(200, 1, 9, 9).contiguous(memory_format=torch.channels_last)
    images[:, 0, 4, 4] = 1
    torch.manual_seed(0)
    moved = data.shifted(images)
    places = [tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()]
    assert set(places) == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    assert len(places) == 200
    assert moved.stride() == images.stride()
    torch.manual_seed(0)
    assert torch.equal(data.shifted(images), moved)


def test_the_border_goes_on_outside():
    images = torch.arange(9.0).view(1, 1, 3, 3)
    rows = {tuple(row) for _ in range(50) for row in data.shifted(images, 1)[0, 0].tolist()}
    assert (0.0, 0.0, 1.0) in rows
    assert (7.0, 8.0, 8.0) in rows
