"""What merged tensors are, in one drawing: docs/merged.svg, and docs/merged.ru.svg in Russian.

- `python -m benchmarks.drawing`: a few seconds

Nothing in it is drawn by hand. Which cells are filled is which entries of one filter of
`mil4_nested` have moved in a step of AdamW, and the numbers are the step counts of its state; the
bar has the sizes of `mil4`'s second choice; the last grid is that of a slice of one parameter under
the stock optimizer (benchmarks/nested.py)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks import nested

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, HEIGHT, MARGIN = 800, 352, 20
CELL, TOP = 26, 190  # of the grids, whose columns are a quarter of the width each
STYLE = """
  .paper { fill: #ffffff } text { font: 15px system-ui, sans-serif; fill: #1f2328 }
  .head { font-weight: 600 }
  .train { fill: #1f6feb } .other { fill: #8250df }
  .still { fill: #d8dee4 } .drift { fill: #d1570a }
  .on { fill: #ffffff; text-anchor: middle }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } text { fill: #e6edf3 }
    .still { fill: #30363d } .on { fill: #ffffff }
  }
"""
WORDS = {
    "merged.svg": {
        "title": "Merged tensors: what trains, and what stays",
        "thousands": ",",
        "disjoint": "Disjoint candidates: one storage, a parameter for each candidate",
        "nested": "Nested candidates: the 3x3 kernel is the centre of the 5x5 one",
        "small": ("path conv3x3:", "{n} entries train"),
        "large": ("path conv5x5:", "all {n} train"),
        "steps": ("step counts after", "one step of each"),
        "slice": ("a slice, stock AdamW:", "{n} entries drift"),
    },
    "merged.ru.svg": {
        "title": "Общие тензоры: что обучается, а что стоит на месте",
        "thousands": "\N{NO-BREAK SPACE}",
        "disjoint": "Раздельные кандидаты: одна область памяти, у каждого свой параметр",
        "nested": "Вложенные кандидаты: ядро 3x3 — центр ядра 5x5",
        "small": ("путь conv3x3:", "обучаются {n}"),
        "large": ("путь conv5x5:", "обучаются все {n}"),
        "steps": ("счётчики шагов после", "одного шага каждого"),
        "slice": ("срез, обычный AdamW:", "сдвигаются {n}"),
    },
}


@functools.cache
def facts() -> dict[str, Tensor]:
    """Of one filter: which entries a step of either path moves, and how many steps each has had
    afterwards, all (5, 5); which of the ring move under a slice. sizes: of the disjoint candidates'
    weights, in the order of memory."""
    import torch

    import mnas

    torch.manual_seed(0)
    net = mnas.Supernet(mnas.spaces.mil4_nested())
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=1e-3, weight_decay=0.01)
    choice = next(m for m in net.modules() if isinstance(m, mnas.Choice))
    canvas = choice.canvases["weight"]
    atoms = [choice.get_parameter(key) for key in choice.shared["weight"]]

    def filled(tensors: list[Tensor]) -> Tensor:
        whole = tensors[0].new_zeros(canvas.size)
        for atom, tensor in zip(canvas.atoms, tensors, strict=True):
            atom.put(tensor.detach(), whole)
        return whole[0, 0]

    found = {}
    for name, path in (("large", nested.LARGE), ("small", nested.SMALL)):
        before = filled(atoms)
        optimizer.zero_grad()
        net(torch.rand(8, 1, 28, 28), path).square().mean().backward()
        optimizer.step()
        found[name] = filled(atoms) != before
    steps = [optimizer.dense_state(atom)["step"] for atom in atoms]
    found["steps"] = filled(steps).int()
    _, moved = nested.measure("AdamW", "slice", before=1, steps=1)
    found["slice"] = (moved[0][0, 0] != 0) & ~found["small"]
    _, second = (
        m for m in mnas.Supernet(mnas.spaces.mil4()).modules() if isinstance(m, mnas.Choice)
    )
    sizes = [second.module(index).weight.numel() for index in range(len(second))]
    return {**found, "sizes": torch.tensor(sizes)}


def drawing(name: str) -> str:
    """The text of docs/`name`."""
    words, fact = WORDS[name], facts()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(words['title'])}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text(MARGIN, 34, words["disjoint"], "head"),
    ]
    sizes = fact["sizes"].tolist()
    x, room = MARGIN, WIDTH - 2 * MARGIN - 4
    for size, kernel, kind in zip(sizes, (3, 5), ("train", "other"), strict=True):
        width = round(room * size / sum(sizes))
        parts.append(f'<rect class="{kind}" x="{x}" y="50" width="{width}" height="44" rx="4"/>')
        label = f"conv{kernel}x{kernel}.weight: {size:,}".replace(",", words["thousands"])
        parts.append(_text(x + width // 2, 77, label, "on"))
        x += width + 4
    parts.append(_text(MARGIN, 134, words["nested"], "head"))
    for number, part in enumerate(("small", "large", "steps", "slice")):
        parts += _grid(MARGIN + number * (WIDTH - MARGIN) // 4, part, fact, words[part])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(left: int, part: str, fact: dict[str, Tensor], caption: tuple[str, str]) -> list[str]:
    parts = []
    shown = fact[part].tolist()
    for row in range(5):
        for column in range(5):
            kind = "still"
            if part == "slice":
                kind = "drift" if shown[row][column] else "train"
            elif shown[row][column]:
                kind = "train" if fact["small"][row, column] else "other"
            x, y = left + CELL * column, TOP - 34 + CELL * row
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}"/>'
            )
            if part == "steps":
                number = str(shown[row][column])
                parts.append(_text(x + CELL // 2 - 1, y + 17, number, "on"))
    count = int(fact[part].bool().sum())
    for line, text in enumerate(caption):
        y = TOP - 34 + 5 * CELL + 26 + 22 * line
        parts.append(_text(left, y, text.format(n=count), "below"))
    return parts


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def main() -> None:
    for name in WORDS:
        (Path("docs") / name).write_text(drawing(name))


if __name__ == "__main__":
    main()
