"""Ways in which a file may be wrong, each a function of its bytes; a seed draws among them."""

import json
import os
import pickle
import random
from pathlib import Path

DEEP = b"[" * 100_000 + b"]" * 100_000
WRONG = (
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    "",
    "x",
    '"""\nimport os',
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"a": 1},
)
SPECIAL = ("NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"')


class Runs:
    """Unpickled, it makes a file: code that a file brought was executed."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (Path(self.canary),)


def of_bytes(data, rng, number):
    """Name and content, `number` times: bits, bytes, sectors, cuts, doubled and foreign content."""
    for _ in range(number):
        at = rng.randrange(len(data))
        kind = rng.choice(("bit", "byte", "zeros", "cut", "doubled", "swapped", "inserted"))
        changed = bytearray(data)
        if kind == "bit":
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            changed[at] = (changed[at] + rng.randrange(1, 256)) % 256
        elif kind == "zeros":
            changed[at : at + 512] = bytes(len(changed[at : at + 512]))
        elif kind == "cut":
            del changed[at:]
        elif kind == "doubled":
            changed += changed[at:]
        elif kind == "swapped":
            other = rng.randrange(len(data))
            changed[at], changed[other] = changed[other], changed[at]
        else:
            changed[at:at] = rng.randbytes(3)
        yield f"{kind} at {at}", bytes(changed)


def foreign(canary):
    """Content that belongs to no file of ours, some of it hostile."""
    yield "empty", b""
    yield "deep", DEEP
    yield "utf-16", "{}".encode("utf-16")
    yield "not utf-8", b'{"a": "\xff"}'
    yield "pickle", pickle.dumps(Runs(canary))
    yield "zeros", bytes(1000)


def of_json(text):
    """Every member of a document, or of the first line of several, left out or of another kind."""
    first, newline, rest = (
        text.partition("\n") if text.count("\n") > 1 and text[1] != "\n" else (text, "", "")
    )
    document = json.loads(first)

    def places(node, where=()):
        if isinstance(node, (dict, list)):
            for key in node if isinstance(node, dict) else range(len(node)):
                yield (*where, key)
                yield from places(node[key], (*where, key))

    for where in places(document):
        for wrong in (*WRONG, *(Literal(s) for s in SPECIAL), LEFT_OUT):
            copy = json.loads(first)
            node = copy
            for key in where[:-1]:
                node = node[key]
            if wrong is LEFT_OUT:
                del node[where[-1]]
            else:
                node[where[-1]] = wrong if not isinstance(wrong, Literal) else f"@{wrong.text}@"
            changed = json.dumps(copy)
            if isinstance(wrong, Literal):
                changed = changed.replace(json.dumps(f"@{wrong.text}@"), wrong.text)
            yield f"{'.'.join(map(str, where))} {wrong}", (changed + newline + rest).encode()


class Literal:
    """What json does not write by itself."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


LEFT_OUT = Literal("left out")


def replaced_by(path):
    """Name and an action that puts something else than a file in its place."""
    yield "missing", path.unlink
    yield "pipe", lambda: (path.unlink(), os.mkfifo(path))
    yield "directory", lambda: (path.unlink(), path.mkdir())
    yield "/dev/zero", lambda: (path.unlink(), path.symlink_to("/dev/zero"))
    yield "/dev/full", lambda: (path.unlink(), path.symlink_to("/dev/full"))
    yield "dangling link", lambda: (path.unlink(), path.symlink_to("nowhere"))
    yield "link to itself", lambda: (path.unlink(), path.symlink_to(path.name))
    yield "huge", lambda: os.truncate(path, 1 << 40)


def sample(items, number, seed):
    items = list(items)
    return items if len(items) <= number else random.Random(seed).sample(items, number)
