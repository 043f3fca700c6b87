"""Images in folders: decoded as Pillow decodes them, split and mixed by class, kept in a checked
file, and what is wrong is said."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets import ImageFolder

from mnas.training import data
from mnas.training.data import folder, split


def draw(size=(8, 8), mode="RGB", seed=0):
    channels = {"RGB": (3,), "RGBA": (4,), "CMYK": (4,), "L": ()}[mode]
    values = np.random.default_rng(seed).integers(256, size=(*size, *channels), dtype=np.uint8)
    return Image.fromarray(values, mode) if mode == "CMYK" else Image.fromarray(values)


def images(root, classes=("cat", "dog"), train=20, test=4, ending="jpg", **how):
    """Folders of random images, each another."""
    seed = 0
    for part, number in (("train", train), ("test", test)):
        for name in classes:
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for n in range(number):
                seed += 1
                draw(seed=seed, **how).save(root / part / name / f"{n:04}.{ending}")
    return root


def naive(root, part):
    """torchvision's own reader: images (N, C, H, W) uint8 and labels."""
    pairs = [(np.asarray(image), label) for image, label in ImageFolder(root / part)]
    pixels = np.stack([image for image, _ in pairs]).transpose(0, 3, 1, 2)
    return pixels, np.array([label for _, label in pairs])


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path):
    loaded = data.load("folder", images(tmp_path, classes=("cat", "dog", "emu"), train=10))
    pixels, labels = naive(tmp_path, "train")
    mean, deviation = ((f(pixels / 255, (0, 2, 3), keepdims=True)) for f in (np.mean, np.std))
    wanted = {}
    for n in range(30):  # every tenth is for validation, the others are dealt round by class
        wanted.setdefault("validation" if n % 10 == 9 else "train", []).append(n)
    wanted["train"] = [n for turn in range(9) for n in wanted["train"][turn::9]]
    for name, places in wanted.items():
        split = getattr(loaded, name)
        assert split.labels.tolist() == labels[places].tolist()
        expected = torch.from_numpy((pixels[places] / 255 - mean) / deviation)
        torch.testing.assert_close(split.images.double(), expected, atol=1e-6, rtol=0)
    assert loaded.test.labels.tolist() == [0, 1, 2] * 4
    everything = torch.cat([loaded.train.images, loaded.validation.images]).double()
    assert everything.mean((0, 2, 3)).abs().max() < 1e-6
    assert not loaded.verified


def test_every_beginning_of_a_split_has_the_shares_of_its_classes():
    labels = np.repeat([0, 1, 2], [300, 30, 3])
    order = split.mixed(labels)
    assert sorted(order) == list(range(333))
    for n in (111, 222):
        assert (
            np.abs(
                np.bincount(labels[order[:n]], minlength=3) - n * np.array([100, 10, 1]) / 111
            ).max()
            <= 1
        )
    for number in (1, 9, 10, 14_999, 50_000, 60_000, 240_000):
        places = np.flatnonzero(split.spread(number))
        assert len(places) == min(5_000, max(1, number // 10))
        assert len(set(np.diff(places))) <= 2
    assert np.array_equal(np.flatnonzero(split.spread(60_000)), np.arange(11, 60_000, 12))


def test_a_smaller_image_has_the_means_of_areas(tmp_path):
    full = folder.read(images(tmp_path, size=(12, 12), ending="png"))
    small = folder.read(tmp_path, 4).train_images
    means = full.train_images.reshape(-1, 4, 3, 4, 3, 3).astype(float).mean((2, 4))
    assert np.abs(small - means).max() <= 0.5 + 1e-4
    assert np.array_equal(full.at(4).train_images, small)
    assert folder.read(tmp_path, 12).sha256 == full.sha256
    assert data.load("mnist", resolution=14).train.images.shape == (55_000, 1, 14, 14)


def test_what_is_kept_is_used_until_a_file_changes_or_it_is_damaged(tmp_path, monkeypatch):
    images(tmp_path)
    first, decoded = folder.read(tmp_path), []
    original = folder._decoded
    monkeypatch.setattr(folder, "_decoded", lambda *a: decoded.append(1) or original(*a))

    def same():
        again = folder.read(tmp_path)
        return all(np.array_equal(getattr(again, n), getattr(first, n)) for n in folder.ARRAYS)

    assert same()
    assert not decoded
    kept = tmp_path / folder.CACHE / "original.npz"
    content = bytearray(kept.read_bytes())
    for damage in (content[:-9], content[:5000] + b"\xff\x00\xff" + content[5003:], b""):
        kept.write_bytes(damage)
        decoded.clear()
        assert same()
        assert decoded == [1]
        assert same()
        assert decoded == [1]
    (tmp_path / folder.CACHE / "manifest.json").write_text("{")
    assert same()
    assert len(decoded) == 2
    assert same()
    assert len(decoded) == 2
    draw(seed=99).save(tmp_path / "train" / "cat" / "0003.jpg")
    assert not same()
    assert len(decoded) == 3
    assert folder.read(tmp_path).sha256 != first.sha256
    assert {f.name for f in (tmp_path / folder.CACHE).iterdir()} == {
        "manifest.json",
        "original.npz",
    }


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path):
    (images(tmp_path) / folder.CACHE).write_text("a file")
    assert len(data.load("folder", tmp_path).test) == 8


def test_grey_images_have_one_channel_unless_another_is_in_colour(tmp_path):
    images(tmp_path, mode="L", ending="png")
    grey = folder.read(tmp_path).train_images
    assert grey.shape == (40, 8, 8, 1)
    draw(mode="RGBA").save(tmp_path / "test" / "dog" / "z.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    mixed = folder.read(tmp_path)
    assert np.array_equal(mixed.train_images, np.repeat(grey, 3, axis=3))
    assert np.array_equal(mixed.test_images[-1], np.asarray(draw(mode="RGBA").convert("RGB")))


def test_sixteen_bits_are_not_cut_to_eight(tmp_path):
    images(tmp_path, mode="L", ending="png")
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(data.DataError, match=r"a\.png has pixels of mode I;16; expected 8 bits"):
        data.load("folder", tmp_path)


def remove(path):
    for file in path.iterdir():
        file.unlink()


WRONG = {
    "no folder": (
        lambda root: (root / "test").rename(root / "val"),
        r"cannot read .*test \(No such",
    ),
    "no classes": (
        lambda root: [remove(c) or c.rmdir() for c in (root / "test").iterdir()],
        "test has no classes; exp",
    ),
    "no images": (
        lambda root: remove(root / "train" / "dog"),
        "dog has no images; expected files ending",
    ),
    "other classes": (
        lambda root: (root / "test" / "dog").rename(root / "test" / "eel"),
        r"has the class 'dog' in train/ and not in test/; expected the same",
    ),
    "damaged": (
        lambda root: (root / "train" / "dog" / "0007.jpg").write_bytes(b"\xff\xd8\xff" * 9),
        r"cannot decode .*dog/0007\.jpg \(cannot identify .*restore or remove it",
    ),
    "cut": (
        lambda root: (file := root / "test" / "cat" / "0001.jpg").write_bytes(
            file.read_bytes()[:-60]
        ),
        r"cannot decode .*cat/0001\.jpg \(image file is truncated .*restore or remove it",
    ),
    "sizes": (
        lambda root: draw((9, 8)).save(root / "train" / "dog" / "x.jpg"),
        r"x\.jpg has 8x9 pixels, .*cat/0000\.jpg 8x8; give --resolution",
    ),
    "a link to nothing": (
        lambda root: (root / "train" / "dog" / "x.jpg").symlink_to("nowhere"),
        r"cannot read .*dog/x\.jpg \(No such file or directory\); restore or remove it",
    ),
    "a pipe": (
        lambda root: os.mkfifo(root / "train" / "dog" / "x.jpg"),
        r"dog/x\.jpg is no regular file; expected an image: remove it",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_folder_is_said_in_a_line(case, tmp_path):
    change, message = WRONG[case]
    change(images(tmp_path, size=(8, 8)))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load("folder", tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / folder.CACHE).exists()


def test_names_may_be_of_any_bytes(tmp_path):
    images(tmp_path)
    renamed = data.load("folder", images(tmp_path / "other"))
    for part in ("train", "test"):  # \udcff is how Python has a byte that is no UTF-8
        place = tmp_path / "other" / part
        (place / "dog").rename(place / "dog\udcff")
        (place / "cat" / "0001.jpg").rename(place / "cat" / "0001\udcff.jpg")
    again = data.load("folder", tmp_path / "other")
    assert again.sha256 != renamed.sha256 == data.load("folder", tmp_path).sha256
    assert torch.equal(again.train.images, renamed.train.images)


def test_images_of_several_sizes_are_resized(tmp_path):
    images(tmp_path)
    draw((9, 30)).save(tmp_path / "train" / "dog" / "x.jpg")
    assert data.load("folder", tmp_path, 6).train.images.shape[2:] == (6, 6)


def test_cifar10_is_sorted_by_class_and_divided(tmp_path, monkeypatch):
    """What torchvision has checked and read, in place of 170 MB of download."""

    class Fake:
        def __init__(self, root, train, download):
            random = np.random.default_rng(train)
            number = 200 if train else 50
            self.data = random.integers(256, size=(number, 32, 32, 3), dtype=np.uint8)
            self.targets = [int(n) for n in np.arange(number) * 7 % 10]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    loaded = data.load("cifar10", tmp_path)
    assert loaded.verified
    assert loaded.validation.labels.bincount().tolist() == [2] * 10
    assert loaded.test.labels[:10].sort()[0].tolist() == list(range(10))
    raw = Fake(tmp_path, True, True)
    own = [n for n, label in enumerate(raw.targets) if label == 3]
    mine = loaded.validation.images[loaded.validation.labels == 3]  # the 10th and the 20th
    lookup = data.load("cifar10", tmp_path).train
    assert len(lookup) == 180
    for image, n in zip(mine, (own[9], own[19]), strict=True):
        assert np.corrcoef(image[0].flatten(), raw.data[n, ..., 0].flatten())[0, 1] > 0.999


def crop_naively(image, down, right, flip, most):
    """One image (C, H, W): padded with zeros, cut out, mirrored."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * most, width + 2 * most)
    padded[:, most : most + height, most : most + width] = image
    cut = padded[:, down : down + height, right : right + width]
    return torch.stack([cut[:, :, x] for x in reversed(range(width))], 2) if flip else cut


@pytest.mark.parametrize(("side", "most"), [(32, 4), (16, 2), (5, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_crops_and_flips_equal_a_loop_over_images(side, most, order):
    batch = torch.randn(300, 3, side, side + 1).contiguous(memory_format=order)
    torch.manual_seed(5)
    made = data.cropped_and_flipped(batch)
    torch.manual_seed(5)
    down, right = torch.randint(2 * most + 1, (2, 300))
    flip = torch.randint(2, (300, 1, 1, 1), dtype=torch.bool).flatten()
    loop = [crop_naively(*each, most) for each in zip(batch, down, right, flip, strict=True)]
    assert torch.equal(made, torch.stack(loop))
    assert made.stride() == batch.stride()
    assert {*down.tolist()} == {*right.tolist()} == set(range(2 * most + 1))
    assert 100 < flip.sum() < 200
