"""Readable source of an exported network, which needs nothing but torch.

What is written is put together from literals that `ast` has escaped, from names that are
identifiers, and from the user's own classes as they are in their file; and its syntax tree is
checked before any of it is executed."""

from __future__ import annotations

import ast
import inspect
import keyword
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mnas.networks.loading import LOADS, imports_of

RESERVED = (
    *("BytesIO", "Net", "Path", "Tensor", "hashlib", "json", "load", "nn", "safetensors", "torch"),
)


def source(
    model: nn.Module,
    title: str,
    notes: str = "",
    *,
    verified: bool = False,
    safetensors: bool = False,
) -> str:
    """Python source of a module made of torch.nn layers in (nested) nn.Sequential: a class `Net`
    and a `load`.

    Subclasses of nn.Sequential that only have another forward, as a residual block, are written out
    as they are. verified: `load` compares the files of an export with the digests in
    verification.json, by the standard library. safetensors: and the weights are in that format,
    verified. Raises ValueError for a layer of another class or
    one whose settings its representation does not tell, for names other than numbers, and for other
    numbers than float32: what is written makes exactly this module."""
    if not isinstance(model, nn.Sequential):
        raise ValueError(
            f"cannot write the source of a {type(model).__name__}; put it into a nn.Sequential"
        )
    wrong = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()} - {
        torch.float32
    }
    if wrong:
        raise ValueError(f"cannot write the source of a model in {wrong.pop()}; take model.float()")
    own: dict[str, str] = {}  # source of classes that torch does not have, by name
    base = _sequence(type(model), own)
    layers = textwrap.indent(_layers(model, own), " " * 12)
    load = LOADS[verified, safetensors]
    imports = imports_of(load)
    parts = [
        _docstring(f"{title}\n\n{notes}".strip()),
        *imports[:-1],
        f"{imports[-1]}\nfrom torch import {'Tensor, nn' if own else 'nn'}",
        *(f"\n{text.strip()}" for text in own.values()),
        f"\nclass Net({base}):\n    def __init__(self):\n        super().__init__(\n{layers}      "
        "  )",
        load.rstrip(),
    ]
    text = "\n\n".join(parts) + "\n"
    _check(text, model, own, load)
    return text


def _docstring(text: str) -> str:
    """As a literal that `ast` has escaped."""
    try:
        text.encode()
        literal = ast.unparse(ast.Module([ast.Expr(ast.Constant(text))], []))
        if ast.literal_eval(literal) == text:
            return literal
    except (SyntaxError, UnicodeError, ValueError) as error:
        raise ValueError(
            f"cannot write {text[:40]!r} into a source file ({error}); change the title"
        ) from error
    raise ValueError(f"cannot write {text[:40]!r} into a source file; change the title")


def _check(text: str, model: nn.Module, own: dict[str, str], load: str) -> None:
    """Raises ValueError unless the text is of the form that we write, and makes the same layers
    with the same settings.

    Nothing is executed before its form has been checked.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"cannot write the source of this model: it would not run ({error})"
        ) from error
    *body, net = (node for node in tree.body if not isinstance(node, ast.FunctionDef))
    functions = [ast.dump(node) for node in tree.body if isinstance(node, ast.FunctionDef)]
    ours = [ast.dump(node) for node in ast.parse(load).body]
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    rest = [
        node for node in body if not isinstance(node, (ast.ClassDef, ast.Import, ast.ImportFrom))
    ]
    imports = " ".join(
        ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))
    )
    expected = " ".join(" ".join(imports_of(load)).split()) + " "
    if (
        functions != ours
        or [ast.dump(node) for node in classes]
        != [ast.dump(ast.parse(t).body[0]) for t in own.values()]
        or imports
        not in (f"{expected}from torch import nn", f"{expected}from torch import Tensor, nn")
        or [type(getattr(node, "value", None)) for node in rest] != [ast.Constant]
        or not (isinstance(net, ast.ClassDef) and net.name == "Net" and len(net.body) == 1)
        or not all(_is_layer(node, own) for node in _constructors(net))
    ):
        raise ValueError(
            "cannot write the source of this model: what would be written is not of the expected "
            "form"
        )
    namespace: dict[str, Any] = {"__file__": "model.py", "__name__": "model"}
    try:
        exec(compile(tree, "model.py", "exec"), namespace)
        with torch.random.fork_rng(devices=[]):
            made = namespace["Net"]()
    except Exception as error:  # whatever constructors raise
        raise ValueError(
            f"cannot write the source of this model: it would not run ({error})"
        ) from error
    _compare(made, model)


def _constructors(net: ast.ClassDef) -> Iterator[ast.expr]:
    """The arguments of the one call in Net.__init__; a node that is no layer for any other form."""
    init = net.body[0]
    if (
        isinstance(init, ast.FunctionDef)
        and len(init.body) == 1
        and isinstance(init.body[0], ast.Expr)
    ):
        call = init.body[0].value
        if (
            isinstance(call, ast.Call)
            and ast.unparse(call.func) == "super().__init__"
            and not call.keywords
        ):
            yield from call.args
            return
    yield ast.Constant(None)


def _is_layer(node: ast.expr, own: dict[str, str]) -> bool:
    """A call of a class of torch.nn with literals, or of a sequence with layers."""
    if not isinstance(node, ast.Call):
        return False
    kind = ast.unparse(node.func)
    if kind == "nn.Sequential" or kind in own:
        return not node.keywords and all(_is_layer(argument, own) for argument in node.args)
    known = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "nn"
    arguments = [*node.args, *(word.value for word in node.keywords if word.arg)]
    return (
        known
        and isinstance(getattr(nn, node.func.attr, None), type)
        and len(arguments) == len(node.args) + len(node.keywords)
        and all(map(_is_literal, arguments))
    )


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _compare(made: nn.Module, model: nn.Module) -> None:
    """Raises ValueError unless both have the same layers with the same settings."""
    written = dict(made.named_modules(remove_duplicate=False))
    for name, layer in model.named_modules(remove_duplicate=False):
        if name not in written:
            raise ValueError(
                f"cannot write the source of {name!r}: layers of a sequence must have no names of "
                "their own"
            )
        differing = [
            key
            for key, value in _settings(layer).items()
            if _settings(written[name]).get(key) != value
        ]
        if differing:
            raise ValueError(
                f"cannot write the source of {name!r}: {layer!r} does not show "
                f"{', '.join(differing)}; use mnas.export and your own code"
            )


def _settings(layer: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(layer).items() if not k.startswith("_") and k != "training"}


def _layers(model: nn.Module, own: dict[str, str]) -> str:
    """The constructor arguments of a sequence, a line or block each. own: collects classes that
    torch does not have."""
    lines = []
    for child in model._modules.values():  # a layer may be there more than once
        kind = type(child)
        if isinstance(child, nn.Sequential):
            name = _sequence(kind, own)
            lines.append(f"{name}(\n{textwrap.indent(_layers(child, own), '    ')}),\n")
        elif kind.__module__.startswith("torch.nn.modules.") and not list(child.children()):
            # The one-line representation of torch's own leaf layers is their constructor call.
            lines.append(f"{_call(child)},\n")
        else:
            raise ValueError(
                f"cannot write the source of {kind.__name__}; use mnas.export and your own class"
            )
    return "".join(lines)


def _call(layer: nn.Module) -> str:
    text = f"nn.{layer!r}"
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"cannot write the source of {text[:80]}: it would not run ({error})"
        ) from error
    if not _is_layer(node, {}):
        raise ValueError(
            f"cannot write the source of {text[:80]}: it is no call of a layer of torch with "
            "plain values"
        )
    return text


def _sequence(kind: type, own: dict[str, str]) -> str:
    """The written name of a class of sequences; a subclass of nn.Sequential that is made like one
    joins `own`."""
    if kind is nn.Sequential:
        return "nn.Sequential"
    name = kind.__name__
    if kind.__bases__ != (nn.Sequential,) or kind.__init__ is not nn.Sequential.__init__:
        raise ValueError(f"cannot write the source of {name}; use mnas.export and your own class")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(
            f"cannot write the source of a class named {name!r}, which is no name; rename it"
        )
    if name in RESERVED:
        raise ValueError(f"cannot write the source of two classes named {name}; rename one")
    used = {
        n
        for f in vars(kind).values()
        if inspect.isfunction(f)
        for n in f.__code__.co_names
        if n in f.__globals__
    }
    if used - {"torch", "nn", "Tensor"}:
        raise ValueError(
            f"cannot write the source of {name}: it uses {used - {'torch', 'nn', 'Tensor'}} of "
            "its file"
        )
    try:
        text = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError) as error:
        raise ValueError(f"cannot write the source of {name}: it is in no file") from error
    _check_class(kind, text)
    if own.setdefault(name, text) != text:
        raise ValueError(f"cannot write the source of two classes named {name}; rename one")
    return name


def _check_class(kind: type, text: str) -> None:
    """Raises ValueError unless the text is that of the class in memory, and does nothing but define
    its methods."""
    name = kind.__name__
    refused = f"cannot write the source of {name}: "
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{refused}its file does not hold it ({error})") from error
    if len(body) != 1 or not isinstance(body[0], ast.ClassDef) or body[0].name != name:
        raise ValueError(f"{refused}its file does not hold it alone")
    (node,) = body
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
    texts = [m for m in node.body if isinstance(m, ast.Expr) and isinstance(m.value, ast.Constant)]
    bases = [ast.unparse(base) for base in node.bases]
    if (
        len(methods) + len(texts) != len(node.body)
        or node.decorator_list
        or node.keywords
        or len(bases) != 1
    ):
        raise ValueError(
            f"{refused}it does more than define methods; use mnas.export and your own class"
        )
    (of_class,) = filter(
        inspect.iscode, compile(ast.Module(body, []), "model.py", "exec").co_consts
    )
    compiled = {code.co_name: code for code in of_class.co_consts if inspect.iscode(code)}
    for method in methods:
        spec = method.args
        defaults = [*spec.defaults, *(d for d in spec.kw_defaults if d is not None)]
        of_arguments = [a.annotation for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
        annotations = [a for a in (method.returns, *of_arguments) if a is not None]
        plain = all(
            isinstance(n, (ast.Name, ast.Attribute, ast.Load))
            for a in annotations
            for n in ast.walk(a)
        )
        if (
            method.decorator_list
            or not all(map(_is_literal, defaults))
            or not plain
            or spec.vararg
            or spec.kwarg
        ):
            raise ValueError(
                f"{refused}{method.name} is no plain method; use mnas.export and your own class"
            )
        known = vars(kind).get(method.name)
        if not inspect.isfunction(known) or not _same_code(compiled[method.name], known.__code__):
            raise ValueError(f"{refused}its file has changed since it was imported; start again")


def _same_code(one: Any, other: Any) -> bool:
    """Whether two pieces of compiled code do the same, wherever they stand."""
    if inspect.iscode(one) and inspect.iscode(other):
        names = one.co_names == other.co_names and one.co_varnames == other.co_varnames
        constants = zip(one.co_consts, other.co_consts, strict=False)
        same = len(one.co_consts) == len(other.co_consts) and all(
            _same_code(a, b) for a, b in constants
        )
        return names and same and one.co_code == other.co_code
    return type(one) is type(other) and repr(one) == repr(other)
