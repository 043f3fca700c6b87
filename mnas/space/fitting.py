"""Whether the candidates of a space fit into its networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mnas.space.choice import Choice, choices_of
from mnas.space.coupling import Key, Path
from mnas.space.inputs import Inputs, called
from mnas.space.trial import Runner, Watch, floating_type

if TYPE_CHECKING:
    from mnas.space.search_space import SearchSpace


def check_fit(space: SearchSpace, model: nn.Module) -> Any:
    """Run networks until every value of every decision, with the others at their first, and every
    candidate have been run. Returns an output, of zeros.

    Raises ValueError for what does not fit, is never reached, or lies outside the rule of
    regions."""
    choices = choices_of(model)
    trial = _Trial(space, model.eval(), choices)
    expected: Any = None
    for path, what in paths_to_try(space, choices):
        key = space.key(path)
        where = f"space {space.name!r}: {what} does not fit"
        trial.at = ""
        try:
            output = trial.runner.output(key)
        except Exception as error:  # whatever torch, or the user's own layers, raise
            raise ValueError(
                f"{where} into the network for inputs of {trial.runner.inputs.describe()}"
                f"{trial.at} ({' '.join(str(error).split())}); make its output the size that the "
                "next layer takes, or say input_shape=(C, H, W)"
            ) from error
        if not isinstance(output, Tensor) and space._example is None:
            raise ValueError(
                f"{where}: the output is a {type(output).__name__}; return the logits alone, or "
                "say example= for a model of other outputs"
            )
        if isinstance(output, Tensor):
            expected = output if expected is None else expected
            if output.shape != expected.shape:
                raise ValueError(
                    f"{where}: with it the output is {tuple(output.shape)}, with the others "
                    f"{tuple(expected.shape)}; make them equal"
                )
    trial.check()
    return output if expected is None else expected


def paths_to_try(space: SearchSpace, choices: Sequence[Choice]) -> Iterator[tuple[Path, str]]:
    """Paths that have every value of every decision, with the others at their first, and every
    candidate; with what each of them tries."""
    tried: set[Key] = set()
    first = (0,) * len(space.decisions)
    for position, decision in enumerate(space.decisions):
        for index, label in enumerate(decision.labels):
            path = (*first[:position], index, *first[position + 1 :])
            if space.key(path) not in tried:
                tried.add(space.key(path))
                own = [c for n, c in enumerate(choices) if c.decisions_at(n) == (decision,)]
                yield (
                    path,
                    (
                        f"candidate {label!r} of choice {choices.index(own[0])}"
                        if len(own) == 1 and own[0].own
                        else f"{decision.name}={label}, the other decisions at their first values,"
                    ),
                )
    for number, choice in enumerate(choices):
        for index, name in enumerate(choice.names):
            if all(key[number] != index for key in tried):
                path = space.coupling.first({number: index})
                tried.add(space.key(path))
                yield path, f"candidate {name!r} of choice {number}"


class _Trial:
    """Runs networks, and looks at how their layers use what is theirs."""

    def __init__(self, space: SearchSpace, model: nn.Module, choices: Sequence[Choice]) -> None:
        self.space, self.choices = space, choices
        self.at = ""
        self.reached: set[int] = set()
        self.watch = Watch()
        # But for atoms, which are put together first.
        atoms = {id(p) for choice in choices for p in choice._parameters.values()}
        self.watch.plain = {
            id(p): name for name, p in model.named_parameters() if id(p) not in atoms
        }
        # Two images, so that a batch is told from one.
        inputs = space.inputs(2, floating_type(model))
        self.runner = Runner(model, choices, inputs, self._measure)
        self.runner.made = self._made
        self._calls: list[Any] = []

    def _made(self, position: int, index: int, module: nn.Module) -> None:
        """A candidate is about to be run."""
        choice = self.choices[position]

        def note(*_: Any) -> None:
            self.reached.add(position)
            self.at = f", at {choice.names[index]!r} of choice {position}"

        self._calls.append(module.register_forward_pre_hook(note))
        for name, tensor in module.named_parameters():
            boxes = choice.canvases[name].boxes if name in choice.canvases else ()
            if name not in choice.layouts and len({len(box[0]) for box in boxes if box}) > 1:
                self.watch.shared[id(tensor)] = position, name

    def _measure(self, module: nn.Module, inputs: Inputs) -> tuple[None, Any]:
        try:
            with self.watch:
                return None, called(module, inputs)
        finally:
            self.watch.clear()
            for handle in self._calls:
                handle.remove()
            self._calls.clear()

    def check(self) -> None:
        name = self.space.name
        for number, choice in enumerate(self.choices):
            if number not in self.reached:
                raise ValueError(
                    f"space {name!r}: the forward pass never reaches choice {number} "
                    f"({', '.join(choice.names)}); call it, or leave it out of the model"
                )
        for parameter, shapes in self.watch.slices.items():
            if len(shapes) > 1:
                raise ValueError(
                    f"space {name!r}: the layer of {parameter!r} takes parts of it that depend on "
                    f"its input, {sorted(shapes)}, so the optimizer would train all of it; make "
                    "the layer a Choice of the decision that its input depends on"
                )
        for (number, tensor), found in self.watch.divided.items():
            if len({factors[1:] for factors in found}) > 1:
                raise ValueError(
                    f"space {name!r}: candidates of choice {number} divide the output of "
                    f"{tensor!r} into {' and '.join(map(str, found))}, so that the first rows of a "
                    "wide one are not those of a narrow one; say how the rows are made, as in "
                    f"Choice(..., layout={{{tensor!r}: '(3 width) inputs'}})"
                )
