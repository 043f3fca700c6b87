"""A loop of the user's own: every part of the trainer that can be another one, against the loop
written out by hand with stock parts of torch."""

import copy
import re

import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, ReduceLROnPlateau, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

import mnas
from mnas.space.sampler import UniformSampler
from mnas.training.data import Split
from mnas.training.loop import Callback, Loop
from mnas.training.trainer import Recipe, _seeds, scratch_trainer, supernet_trainer

SEED, EPOCHS = 3, 3


class Noisy(TensorDataset):
    """Augmented with torch's generator, as by torchvision."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn_like(x), y


@pytest.fixture
def splits(mnist):
    return Split(mnist.train.images[:90], mnist.train.labels[:90]), mnist.validation.first(20)


def loader(split, **options):
    """Batches of 16 images and one of 10, in an order of its own."""
    generator = torch.Generator().manual_seed(5)
    options = {"batch_size": 16, "shuffle": True, "generator": generator, **options}
    return DataLoader(Noisy(split.images, split.labels), **options)


def adamw(module):
    if isinstance(module, mnas.Supernet):
        return mnas.MaskedOptimizer(torch.optim.AdamW, module, lr=3e-3, weight_decay=0.05)
    return torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.05)


def warm_cosine(optimizer, steps):
    parts = [LinearLR(optimizer, 0.1, total_iters=5), CosineAnnealingLR(optimizer, steps - 5)]
    return SequentialLR(optimizer, parts, milestones=[5])


class Clip(Callback):
    def before_step(self, trainer):
        nn.utils.clip_grad_norm_(trainer.module.parameters(), 0.5)


class Average(Callback):
    """An exponential moving average of the weights, in checkpoints."""

    def __init__(self, module):
        self.weights = copy.deepcopy(module.state_dict())

    def after_step(self, trainer, losses):
        for key, value in trainer.module.state_dict().items():
            self.weights[key].lerp_(value, 0.1)

    def state_dict(self):
        return self.weights

    def load_state_dict(self, state):
        self.weights = state


class Notes(Callback):
    def __init__(self):
        self.heard = []

    def before_step(self, trainer):
        self.heard.append(("before", trainer.step))

    def after_step(self, trainer, losses):
        self.heard.append(("after", trainer.step, losses))

    def after_validation(self, trainer, rows):
        self.heard.append(("validated", trainer.epoch, rows))


def finish(trainer):
    return [trainer.advance() for _ in range(trainer.total_steps - trainer.step)]


def equal(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_supernet_in_a_loop_of_ones_own_is_the_loop_written_out(small, splits):
    """Everything at once: a loader, AdamW, warm-up and cosine, soft labels, clipping, an average of
    the weights."""
    train, validation = splits
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    average = Average(nn.Module())
    loop = Loop(adamw, warm_cosine, loss, [Clip(), average])
    recipe = Recipe(EPOCHS)
    trainer = supernet_trainer(small, loader(train), validation, recipe, SEED, loop=loop)
    average.weights = copy.deepcopy(trainer.module.state_dict())
    losses = finish(trainer)

    torch.manual_seed(_seeds(SEED)[0])
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=3e-3, weight_decay=0.05)
    batches, sampler = loader(train), UniformSampler(small, _seeds(SEED)[1])
    scheduler = warm_cosine(optimizer, EPOCHS * len(batches))
    averaged, expected = copy.deepcopy(net.state_dict()), []
    for _ in range(EPOCHS):
        for x, y in batches:
            value = loss(net(x, next(sampler)), y)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            for key, tensor in net.state_dict().items():
                averaged[key].lerp_(tensor, 0.1)
            expected.append(value.item())
    assert losses == expected
    assert len(losses) == 18  # the last batch of an epoch is a short one, not left out
    assert equal(dict(trainer.module.state_dict()), dict(net.state_dict()))
    assert equal(trainer.optimizer.state_dict()["state"], optimizer.state_dict()["state"])
    assert equal(dict(average.weights), dict(averaged))
    assert len(trainer.rows) == EPOCHS * small.size


@pytest.mark.parametrize("part", ["optimizer", "schedule", "loss", "soft labels", "callback"])
def test_each_part_by_itself_in_a_network_from_scratch(part, small, splits):
    """All others are those of the recipe: SGD with Nesterov momentum under one cycle."""
    train, validation = splits

    def soft(batch):
        x, y = (torch.stack(side) for side in zip(*batch, strict=True))
        return x, F.one_hot(y, 10) * 0.9 + 0.01

    loop = {
        "optimizer": Loop(optimizer=adamw),
        "schedule": Loop(schedule=warm_cosine),
        "loss": Loop(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        "soft labels": Loop(),
        "callback": Loop(callbacks=[Clip()]),
    }[part]
    options = {"collate_fn": soft} if part == "soft labels" else {}
    make = loader(train, **options), validation, Recipe(2, lr=0.05), SEED
    trainer = scratch_trainer(small, (1, 0), *make, loop=loop)

    torch.manual_seed(_seeds(SEED)[0])
    model = mnas.standalone(small, (1, 0))
    assert equal(dict(trainer.module.state_dict()), dict(model.state_dict()))
    finish(trainer)
    sgd = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    if part == "optimizer":
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3 if part == "optimizer" else 0.05, 12, cycle_momentum=False
    )
    if part == "schedule":
        scheduler = warm_cosine(torch.optim.SGD(model.parameters(), **sgd), 12)
        optimizer = scheduler.optimizer
    torch.manual_seed(_seeds(SEED)[0])
    mnas.standalone(small, (1, 0))  # what it draws
    batches = loader(train, **options)
    for _ in range(2):
        for x, y in batches:
            optimizer.zero_grad()
            smoothing = 0.1 if part == "loss" else 0.0
            F.cross_entropy(model(x), y, label_smoothing=smoothing).backward()
            if part == "callback":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
    assert equal(dict(trainer.module.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("stop", [0, 4, 6, 13, 18])
@pytest.mark.parametrize("own", [True, False], ids=["own generator", "torch's generator"])
def test_a_loop_of_ones_own_continues_bit_for_bit(own, stop, small, splits):
    train, validation = splits

    def make():
        batches = loader(train) if own else loader(train, generator=None)
        average = Average(nn.Module())
        loop = Loop(adamw, warm_cosine, callbacks=[Clip(), average])
        options = {"loop": loop, "bn": "recalibrate"}
        trainer = supernet_trainer(small, batches, validation, Recipe(EPOCHS), SEED, **options)
        average.weights = copy.deepcopy(trainer.module.state_dict())
        return trainer

    whole = make()
    losses = finish(whole)
    begun = make()
    first = [begun.advance() for _ in range(stop)]
    saved = copy.deepcopy(begun.state_dict())
    torch.rand(3)  # what happens elsewhere in the process must not matter
    resumed = make()
    resumed.load_state_dict(saved)
    assert first + finish(resumed) == losses
    assert equal(whole.state_dict(), resumed.state_dict())


def test_workers_of_a_loader_change_nothing(small, splits):
    still = TensorDataset(*vars(splits[0]).values())
    states = []
    for workers in (0, 1):
        generator = torch.Generator().manual_seed(5)
        batches = DataLoader(still, 16, True, num_workers=workers, generator=generator)
        trainer = scratch_trainer(small, (0, 0), batches, splits[1], Recipe(1), SEED)
        finish(trainer)
        states.append(dict(trainer.module.state_dict()))
    assert equal(*states)


def test_callbacks_hear_of_every_step_and_validation(small, splits):
    notes = Notes()
    recipe = Recipe(2, batch_size=45)
    trainer = supernet_trainer(small, *splits, recipe, SEED, loop=Loop(callbacks=[notes]))
    losses = finish(trainer)
    assert [heard[:2] for heard in notes.heard] == [
        *(("before", 0), ("after", 1), ("before", 1), ("after", 2), ("validated", 1)),
        *(("before", 2), ("after", 3), ("before", 3), ("after", 4), ("validated", 2)),
    ]
    steps = [heard[2] for heard in notes.heard if heard[0] == "after"]
    assert [sum(found.values()) for found in steps] == losses
    rows = [row for heard in notes.heard if heard[0] == "validated" for row in heard[2]]
    assert rows == trainer.rows


def test_a_list_of_batches_will_do(small, splits):
    x, y = vars(splits[0]).values()
    batches = list(zip(x.split(45), y.split(45), strict=True))
    assert len(finish(scratch_trainer(small, (0, 0), batches, splits[1], Recipe(2), SEED))) == 4


def test_what_cannot_be_trained_on_is_refused(small, splits):
    train, validation = splits

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(train.images[:4], train.labels[:4])])

    class Short(list):
        def __len__(self):
            return 2

    pair = (train.images[:4], train.labels[:4])
    for batches, message in [
        (DataLoader(Stream(), None), "a DataLoader, have no length; expected a data set with"),
        ([], "the training batches are none; expected one at least"),
        ([train.images[:4]], "batch is a Tensor; expected a pair of tensors of one length, images"),
        ([(*pair, 1)], r"batch is a tuple of \['Tensor', 'Tensor', 'int'\]; expected a pair"),
        ([(pair[0], pair[1][:3])], r"a tuple of \['Tensor', 'Tensor'\]; expected a pair"),
        (Short([pair]), r"batches have ended after 1 of 2; expected as many as their len\(\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            finish(supernet_trainer(small, batches, validation, Recipe(1), SEED))
    with pytest.raises(
        ValueError, match=r"'shift' is for a mnas\.data\.Split; augment in the data"
    ):
        supernet_trainer(small, [pair], validation, Recipe(1, augment="shift"), SEED)
    for parts, message in [
        ({"optimizer": adamw(nn.Linear(1, 1))}, "optimizer is a AdamW; expected a function"),
        ({"optimizer": lambda net: net}, "optimizer made a Supernet; expected a torch.optim"),
        ({"schedule": lambda o, n: ReduceLROnPlateau(o)}, "made a ReduceLROnPlateau; expected a"),
        ({"schedule": None}, "schedule is a NoneType; expected a function"),
        ({"callbacks": [print]}, "a callback is a builtin_function_or_method; expected a mnas"),
    ]:
        with pytest.raises(ValueError, match=message):
            supernet_trainer(small, train, validation, Recipe(1), SEED, loop=Loop(**parts))


def test_a_state_of_another_loop_is_refused(small, splits):
    def make(**parts):
        return supernet_trainer(small, *splits, Recipe(1), SEED, loop=Loop(**parts))

    averaged = make(callbacks=[Average(nn.Linear(1, 1))]).state_dict()
    with pytest.raises(ValueError, match="not of this training"):
        make().load_state_dict(averaged)
    with pytest.raises(ValueError, match="lacks 'callbacks'"):
        make(callbacks=[Average(nn.Linear(1, 1))]).load_state_dict(make().state_dict())
    with pytest.raises(ValueError, match="not of this training"):
        make(optimizer=adamw).load_state_dict(make().state_dict())


def test_the_example_of_the_page_runs(capsys):
    page = (ROOT / "docs" / "own-training.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {"__name__": "example"}
    exec(example, names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert all(float(line.split()[1]) > 0.5 for line in printed), printed
    assert names["trainer"].step == 80
