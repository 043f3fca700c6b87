"""Data: the embedded MNIST is MNIST, the split is fixed, and what is missing or damaged is said."""

import bz2
import gzip
import hashlib
import lzma
import os
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

from mnas.training import data

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
        mnist.validation.images[3, 0],
        torch.from_numpy((raw[47] / 255 - 0.1307) / 0.3081).float(),
        atol=1e-3,
        rtol=0,
    )
    labels = data.read_idx_xz("train-labels-idx1-ubyte.xz")
    assert mnist.validation.labels.tolist() == labels[11::12].tolist()
    assert mnist.train.labels[:12].tolist() == [*labels[:11], labels[12]]


def test_damage_is_noticed(tmp_path):
    name = "t10k-labels-idx1-ubyte.xz"
    content = (resources.files("mnas.training") / "mnist" / name).read_bytes()
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
def test_torchvision_sets_are_read_from_the_files_that_the_error_names(
    dataset, tmp_path, no_network
):
    with pytest.raises(data.DataError) as caught:
        data.load(dataset, tmp_path)
    assert not any(tmp_path.rglob("*ubyte"))
    files, folder = re.search(r"put (.*) into (.*)/", str(caught.value)).groups()
    random = np.random.default_rng(0)
    for number, name in enumerate(files.split(", ")):
        n = 60 if number < 2 else 20
        labels = random.integers(10, size=(n, 8) if "idx2" in name else n)
        kind = np.int32 if "idx2" in name else np.uint8
        images = random.integers(256, size=(n, 28, 28), dtype=np.uint8)
        write_idx(Path(folder) / name, images if "images" in name else labels.astype(kind))
    loaded = data.load(dataset, tmp_path)
    assert len(loaded.train) + len(loaded.validation) == 60
    assert len(loaded.test) == 20
    assert loaded.test.labels.shape == (20,)
    first = Path(folder) / files.split(", ")[0]
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(
        data.DataError, match=rf"{first.name} holds .* bytes of data, its header says"
    ):
        data.load(dataset, tmp_path)


def test_unknown_dataset():
    with pytest.raises(
        data.DataError, match="'cifar' is unknown; expected one of mnist, fashion-mnist"
    ):
        data.load("cifar")


@pytest.mark.skipif(
    not (ROOT.parent / "shared/data/fashion-mnist").exists(),
    reason="needs a copy of Fashion-MNIST beside the checkout",
)
def test_real_fashion_mnist(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (ROOT.parent / "shared/data/fashion-mnist").glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    loaded = data.load("fashion-mnist", tmp_path)
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [
        55_000,
        5_000,
        10_000,
    ]
    reference = datasets.FashionMNIST(tmp_path, train=False)
    assert loaded.test.labels.tolist() == reference.targets.tolist()
    assert loaded.test.images[0].amax() > 1
    assert loaded.verified


def test_shifted_images_move_each_its_own_way():
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


def fashion(root, train=(60, 60), test=(20, 20), seed=0, **changes):
    """Random files under the names of Fashion-MNIST; returns their folder. changes: a function of
    one array, by name with underscores for dashes."""
    random, raw = np.random.default_rng(seed), root / "FashionMNIST" / "raw"
    for part, (images, labels) in (("train", train), ("t10k", test)):
        arrays = {
            f"{part}-images-idx3-ubyte": random.integers(
                256, size=(images, 28, 28), dtype=np.uint8
            ),
            f"{part}-labels-idx1-ubyte": random.integers(10, size=labels, dtype=np.uint8),
        }
        for name, array in arrays.items():
            change = changes.get(name.split("-ubyte")[0].replace("-", "_"), lambda array: array)
            write_idx(raw / name, change(array))
    return raw


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fashion(tmp_path / "data")
    assert len(data.load("fashion-mnist", "~/data").test) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_packed_files_are_the_same_data(suffix, pack, tmp_path, no_network):
    raw = fashion(tmp_path)
    plain = data.load("fashion-mnist", tmp_path)
    assert (plain.verified, len(plain.sha256)) == (False, 64)
    for file in list(raw.iterdir()):
        file.with_name(file.name + suffix).write_bytes(pack(file.read_bytes()))
        file.unlink()
    packed = data.load("fashion-mnist", tmp_path)
    assert packed.found == plain.found
    assert torch.equal(packed.train.images, plain.train.images)
    file = raw / f"train-images-idx3-ubyte{suffix}"
    for content in (file.read_bytes()[:-40], b"x" * 100, b"", pack(b"<html>")):
        file.write_bytes(content)
        with pytest.raises(data.DataError, match=r"train-images-idx3-ubyte\.\w+"):
            data.load("fashion-mnist", tmp_path)


def test_other_content_is_another_digest(tmp_path, no_network):
    found = []
    for seed in (0, 1):
        fashion(tmp_path / str(seed), seed=seed)
        found.append(data.load("fashion-mnist", tmp_path / str(seed)).sha256)
    assert len({*found, data.load("mnist").sha256}) == 3
    assert data.load("mnist").verified


HEADER = struct.Struct(">HBB3I")
BROKEN = {
    "truncated": (
        lambda b: b[:-1000],
        "holds 46,040 bytes of data, its header says 47,040; restore it",
    ),
    "too long": (
        lambda b: b + b"x",
        "holds more bytes of data, its header says 47,040; restore it",
    ),
    "empty": (lambda b: b"", "is no IDX file of images or labels: it begins with b''"),
    "still packed": (gzip.compress, "is no IDX file of images or labels"),
    "an error page": (
        lambda b: b"<html>503</html>",
        "is no IDX file of images or labels: it begins with b'<htm'",
    ),
    "cut in the header": (lambda b: b[:10], "ends within its header"),
    "of another type": (lambda b: b"\0\0\x0d" + b[3:], "is no IDX file of images or labels"),
    "labels": (
        lambda b: b[:3] + b"\1" + b[4:8] + b[16:76],
        r"has the shape \(60,\), expected \(N, 28, 28\)",
    ),
    "of another size": (
        lambda b: HEADER.pack(0, 8, 3, 60, 27, 28) + b[16 : 16 + 60 * 27 * 28],
        r"has the shape \(60, 27, 28\)",
    ),
    "a bomb": (
        lambda b: HEADER.pack(0, 8, 3, 2**32 - 1, 2**31, 28),
        "claims to hold .* bytes, expected 2,147,483,648",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_there_and_wrong_is_named_with_what_is_wrong(case, tmp_path, no_network):
    change, message = BROKEN[case]
    file = fashion(tmp_path) / "train-images-idx3-ubyte"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(data.DataError, match=rf"train-images-idx3-ubyte {message}") as caught:
        data.load("fashion-mnist", tmp_path)
    assert "put" not in str(caught.value)


def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path, no_network):
    for number, make in enumerate(
        (os.mkfifo, lambda file: file.symlink_to("/dev/zero"), Path.mkdir)
    ):
        file = fashion(tmp_path / str(number)) / "t10k-labels-idx1-ubyte"
        file.unlink()
        make(file)
        with pytest.raises(data.DataError, match="t10k-labels-idx1-ubyte"):
            data.load("fashion-mnist", tmp_path / str(number))


def blank(array):
    return np.zeros_like(array)


IMPOSSIBLE = {
    "labels": (
        {"train_labels_idx1": lambda a: a + 1},
        "train-labels-idx1-ubyte has the label 10, expected 0 to 9",
    ),
    "test labels": (
        {"t10k_labels_idx1": lambda a: a + 200},
        "t10k-labels-idx1-ubyte has the label 20",
    ),
    "number": (
        {"train": (60, 59)},
        "train-images-idx3-ubyte has 60 images, train-labels-idx1-ubyte 59 labels",
    ),
    "blank": ({"train_images_idx3": blank}, "train-images-idx3-ubyte: 60 of 60 images are blank"),
    "blank test": (
        {"t10k_images_idx3": blank},
        "t10k-images-idx3-ubyte: 20 of 20 images are blank",
    ),
    "one image": ({"train": (1, 1)}, "train-images-idx3-ubyte has 1 images, expected 3 at least"),
    "two images": ({"train": (2, 2)}, "train-images-idx3-ubyte has 2 images, expected 3 at least"),
    "no test": ({"test": (0, 0)}, "t10k-images-idx3-ubyte has 0 images, expected 1 at least"),
    "one label": (
        {"train_labels_idx1": lambda a: a * 0 + 3},
        "train-labels-idx1-ubyte has no other label than 3",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_no_data_set_can_be_is_refused(case, tmp_path, no_network):
    changes, message = IMPOSSIBLE[case]
    fashion(tmp_path, **changes)
    with pytest.raises(data.DataError, match=message):
        data.load("fashion-mnist", tmp_path)


def test_test_images_that_were_trained_on_are_refused(tmp_path, no_network):
    raw = fashion(tmp_path)
    images = data.read_idx(raw / "train-images-idx3-ubyte")[0]
    write_idx(raw / "t10k-images-idx3-ubyte", images[5:25])
    with pytest.raises(
        data.DataError, match=r"20 of the 20 images of .*t10k-images-idx3-ubyte are in train-images"
    ):
        data.load("fashion-mnist", tmp_path)


def test_few_images_are_split_into_parts_that_are_not_empty(tmp_path, no_network):
    for number in range(3, 9):
        fashion(tmp_path / str(number), train=(number, number), test=(1, 1))
        loaded = data.load("fashion-mnist", tmp_path / str(number))
        assert len(loaded.train) >= 2
        assert len(loaded.validation) >= 1
        assert loaded.train.images.isfinite().all()


def test_a_known_set_with_another_content_is_refused(tmp_path, monkeypatch, no_network):
    """Sixty thousand images under the name of Fashion-MNIST claim to be it."""
    raw = fashion(tmp_path, train=(60_000, 60_000), test=(10_000, 10_000))
    with pytest.raises(
        data.DataError, match="train-images-idx3-ubyte is not that of fashion-mnist: SHA-256"
    ):
        data.load("fashion-mnist", tmp_path)
    names = [
        f"{part}-{what}"
        for part in ("train", "t10k")
        for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    digests = [hashlib.sha256((raw / name).read_bytes()).hexdigest() for name in names]
    monkeypatch.setitem(data.PUBLISHED, "fashion-mnist", digests)
    assert data.load("fashion-mnist", tmp_path).verified
    labels = bytearray((raw / "t10k-labels-idx1-ubyte").read_bytes())
    labels[100] ^= 1
    (raw / "t10k-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(data.DataError, match="t10k-labels-idx1-ubyte is not that of fashion-mnist"):
        data.load("fashion-mnist", tmp_path)


def test_splits_fit_together():
    images, labels = torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    assert len(data.Split(images, labels).first(2)) == 2
    for wrong, message in [
        ((images, labels[:2]), r"images of \(3, 1, 4, 4\) and labels of \(2,\)"),
        ((images[0], labels), "expected .* and"),
        ((images.int(), labels), "images of torch.int32"),
        ((images, labels.float()), "labels of torch.float32"),
        ((images.numpy(), labels), "images of a split are a ndarray"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.Split(*wrong)
    with pytest.raises(ValueError, match="the first 0 images of a split are none"):
        data.Split(images, labels).first(0)
