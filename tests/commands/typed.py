"""What a user writes, under mypy --strict: every type is known, none is Any."""

from typing import Any, assert_type

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

import mnas
from mnas.training.data import Split
from mnas.training.loop import Callback, Loop
from mnas.training.trainer import Recipe, Trainer, supernet_trainer


def model() -> nn.Module:
    kernel = mnas.Decision("kernel", (3, 5))

    def convolution(kernel: int) -> nn.Module:
        return nn.Conv2d(1, 4, kernel, padding=kernel // 2)

    return nn.Sequential(
        mnas.Choice(convolution, kernel, nested=True),
        mnas.Choice({"relu": nn.ReLU(), "gelu": nn.GELU()}),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )


Path = tuple[int, ...]
space = mnas.SearchSpace(model, name="tiny")
net = mnas.Supernet(space)
optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9)
sampler = mnas.UniformSampler(space, seed=0)
x, y = torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 3, 4])
for _ in range(2):
    path = assert_type(next(sampler), Path)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(x, path), y)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
best = assert_type(space.path(kernel=5), Path)
plain = assert_type(mnas.export(net, best), nn.Module)
for given in (best, list(best), torch.tensor(best), "kernel=5-relu"):
    assert_type(space.check(given), Path)
    net(x, path=given)
assert_type(mnas.standalone(space, space.parse("kernel=3-relu")), nn.Module)
assert_type(mnas.recalibrate(plain, x), nn.Module)
assert_type(mnas.evaluate(plain, x, y).top1, float)
assert_type(mnas.evaluate_paths(net, [best], x, y, bn_images=x)[0].loss, float)
assert_type(mnas.cost(space, best).macs, int)
assert_type(net.forward_paths(x, [best, (0, 1)]), list[Tensor])
assert_type(space.values(best), dict[str, Any])
assert_type([space.format(p) for p in space.paths()], list[str])
assert_type(mnas.spaces.mil4(), mnas.SearchSpace)


class Clip(Callback):
    def before_step(self, trainer: Trainer) -> None:
        nn.utils.clip_grad_norm_(trainer.module.parameters(), 1.0)


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return mnas.MaskedOptimizer(torch.optim.AdamW, module, lr=1e-3)


loop = Loop(
    optimizer=adamw,
    schedule=CosineAnnealingLR,
    loss=nn.CrossEntropyLoss(label_smoothing=0.1),
    callbacks=[Clip()],
)
images = DataLoader(TensorDataset(x, y), batch_size=2)
trainer = supernet_trainer(space, images, Split(x, y), Recipe(1), 0, loop=loop)
assert_type(trainer.advance(), float)
assert_type(trainer.state_dict(), dict[str, Any])

mask = mnas.GradientMask(plain, {"*": False, "4.*": True})
with mask:
    plain(x)
