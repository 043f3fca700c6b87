"""Written source: what comes from a file or a caller is a literal or a checked name, and nothing
else of it runs."""

import ast
import builtins
import importlib.util
import json
import os
import random
import re
import shutil
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import tool
from running import ARCHS, in_process
from torch import nn

from mnas.networks.source import source
from mnas.storage import strict_json
from mnas.storage.files import Folder
from mnas.training import run_directory

FIRED = "mnas_test_canary"
ATTACK = f"import builtins; builtins.{FIRED} = True"


@pytest.fixture(autouse=True)
def canary():
    yield
    assert not hasattr(builtins, FIRED)


ATTACKS = st.sampled_from(
    ['"""\n', "'''\n", '"', "\\", "\n", ATTACK, "#", "\0", "\ud800", "é", "{", "\\N{", "\r"]
)
TEXT = st.lists(st.text(max_size=8) | ATTACKS, max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT)
def test_title_and_notes_are_a_docstring_and_nothing_else(title, notes):
    model = nn.Sequential(nn.Linear(2, 2))
    try:
        text = source(model, title, notes)
    except ValueError as error:
        if not re.match("cannot write .* into a source file", str(error), re.DOTALL):
            raise
        return
    docstring = ast.get_docstring(ast.parse(text.encode()), clean=False)
    assert docstring == f"{title}\n\n{notes}".strip()
    namespace = {"__file__": "model.py", "__name__": "model"}
    exec(text, namespace)
    assert namespace["__doc__"] == docstring


@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_text_in_a_layer_never_runs(text):
    layer = nn.Conv2d(1, 1, 3)
    layer.padding_mode = text
    with pytest.raises(ValueError, match="cannot write the source of"):
        source(nn.Sequential(layer), "A layer.")


CALLS = [
    f"Linear(__import__('builtins').setattr(__import__('builtins'), '{FIRED}', True))",
    f"Linear(1, 1), exec('{ATTACK}')",
    f"Linear(1, 1)\n{ATTACK}",
    "Linear(*[1, 1])",
    "Linear(**{'in_features': 1, 'out_features': 1})",
    "init.zeros_(1)",
    "Module.__init__(1)",
    "Nowhere(1)",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_layer_whose_representation_lies_is_refused(call):
    layer = nn.Linear(1, 1)
    layer.__class__ = type(
        "Linear",
        (nn.Linear,),
        {"__module__": "torch.nn.modules.linear", "__repr__": lambda _: call},
    )
    with pytest.raises(ValueError, match="cannot write the source of"):
        source(nn.Sequential(layer), "A layer.")


class Block(nn.Sequential):
    """A block."""

    def forward(self, x, scale: float = 1.0):
        return scale * super().forward(x)


def of_file(folder, name, text):
    """A class from a file of its own."""
    (folder / f"{name}.py").write_text(f"import torch\nfrom torch import Tensor, nn\n\n\n{text}")
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Block


FORWARD = "    def forward(self, x):\n        return x + super().forward(x)\n"
CLASSES = {
    "decorated": (
        f"@(lambda kind: kind)\nclass Block(nn.Sequential):\n{FORWARD}",
        "does more than define methods",
    ),
    "statement": (
        f"class Block(nn.Sequential):\n    print\n{FORWARD}",
        "does more than define methods",
    ),
    "default": (
        "class Block(nn.Sequential):\n    def forward(self, x, y=print):\n        return x\n",
        "forward is no plain method",
    ),
    "annotation": (
        "class Block(nn.Sequential):\n    def forward(self, x: print('x')):\n        return x\n",
        "forward is no plain method",
    ),
    "decorated method": (
        "class Block(nn.Sequential):\n    @torch.no_grad()\n    def forward(self, x):\n        "
        "return x\n",
        "forward is no plain method",
    ),
}


@pytest.mark.parametrize("case", CLASSES)
def test_classes_that_do_more_than_define_methods_are_refused(case, tmp_path):
    text, message = CLASSES[case]
    block = of_file(tmp_path, f"case_{abs(hash(case))}", text)
    with pytest.raises(ValueError, match=message):
        source(nn.Sequential(block(nn.Tanh())), "A class.")


def test_a_file_that_has_changed_since_its_import_is_not_written(tmp_path):
    text = f"class Block(nn.Sequential):\n{FORWARD}"
    block = of_file(tmp_path, "changed", text)
    assert "class Block" in source(nn.Sequential(block(nn.Tanh())), "A class.")
    file = tmp_path / "changed.py"
    for content in (file.read_text().replace("x + super", "x - super"), f"{ATTACK}\n", ""):
        file.write_text(content)
        with pytest.raises(
            ValueError, match=r"its file has changed|it is in no file|its file does not hold it"
        ):
            source(nn.Sequential(block(nn.Tanh())), "A class.")


def test_class_names_are_identifiers_and_not_ours():
    for name in ("a b", f"x:\n {ATTACK}\nclass y", "class", "hashlib", "load"):
        kind = type(name, (nn.Sequential,), {})
        with pytest.raises(ValueError, match="cannot write the source of"):
            source(nn.Sequential(kind()), "A class.")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A supernet's run of a single step."""
    out = tmp_path_factory.mktemp("runs") / "run"
    short = (
        "--limit-train",
        64,
        "--limit-test",
        20,
        "--batch-size",
        64,
        "--epochs",
        1,
        "--bn",
        "stored",
    )
    done = tool("train", "--mode", "supernet", *short, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def tampered(run, out, **changes):
    """A run whose config.json is somebody else's, with digests and identity made to fit."""
    shutil.copytree(run, out)
    config = {**json.loads((out / "config.json").read_text()), **changes}
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    (out / "manifest.json").unlink()
    Folder(out, run_directory.FORMAT).write({"config.json": strict_json.dumps(config)})
    directory = run_directory.RunDirectory(out)
    directory.save(
        {key: value for key, value in state.items() if key not in ("format", "run")}, [], 1.0
    )
    return out


EXPLOIT = f'"""\n{ATTACK}\n"""'


@pytest.mark.parametrize(
    "key", ["seed", "mode", "dataset", "space", "bn", "arch", "precision", "threads"]
)
def test_the_settings_of_a_foreign_run_do_not_run(key, run, tmp_path, monkeypatch, capsys):
    out = tampered(run, tmp_path / "run", **{key: EXPLOIT})
    arguments = (
        "--checkpoint",
        out,
        "--arch",
        ARCHS[0],
        "--limit-test",
        20,
        "--out",
        tmp_path / "e",
    )
    status, _, error = in_process(monkeypatch, capsys, "export", *arguments)
    *notes, last = error.splitlines()
    assert (status, last[:7]) == (2, "error: "), error
    assert all(note.startswith("note: ") for note in notes)
    assert not (tmp_path / "e").exists()


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
    """Two networks of one supernet."""
    folder = tmp_path_factory.mktemp("exports")
    for arch in (ARCHS[0], ARCHS[1]):
        done = tool(
            "export",
            "--checkpoint",
            run,
            "--arch",
            arch,
            "--out",
            folder / arch,
            "--limit-test",
            20,
        )
        assert done.returncode == 0, done.stderr
    return [folder / arch for arch in (ARCHS[0], ARCHS[1])]


def load_model(folder):
    spec = importlib.util.spec_from_file_location("exported", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def damages(content, other, rng, number):
    """Variants of a file: bits, bytes, runs of zeros, cut, longer, another export's, none."""
    yield from (None, b"", other, content[: len(content) // 2], content + b"\n", content[:-1])
    for _ in range(number):
        variant = bytearray(content)
        at = rng.randrange(len(content))
        kind = rng.randrange(3)
        if kind == 0:
            variant[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            variant[at] = rng.randrange(256)
        else:
            variant[at : at + 512] = bytes(len(variant[at : at + 512]))
        yield bytes(variant)


@pytest.mark.parametrize(
    ("name", "number"), [("model.py", 120), ("weights.pt", 80), ("verification.json", 120)]
)
def test_no_damage_of_an_export_is_used_in_silence(name, number, exports, tmp_path):
    folder, x = tmp_path / "e", torch.randn(2, 1, 28, 28)
    shutil.copytree(exports[0], folder)
    expected = load_model(folder).load()(x)
    whole, other = ((export / name).read_bytes() for export in exports)
    refused = 0
    for content in damages(whole, other, random.Random(0), number):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
        try:
            logits = load_model(folder).load()(x)
        except (ValueError, OSError, SyntaxError):
            refused += 1
        except (NameError, AttributeError, ImportError, TypeError, KeyError, IndexError):
            assert name == "model.py"  # Python's own word for a program with an error in it
            refused += 1
        else:
            assert torch.equal(
                logits, expected
            )  # white space in verification.json, the docstring of model.py
    assert refused > number * (0.9 if name == "weights.pt" else 0.5)


def test_an_export_with_a_pipe_or_a_huge_file_in_the_place_of_a_file_does_not_wait(
    exports, tmp_path
):
    for name in ("weights.pt", "verification.json"):
        folder = tmp_path / name
        shutil.copytree(exports[0], folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(
            ValueError, match=f"{name} is no regular file of at most .*; export the network again"
        ):
            load_model(folder).load()
        (folder / name).unlink()
        (folder / name).touch()
        os.truncate(folder / name, 1 << 40)
        with pytest.raises(
            ValueError, match=f"{name} is no regular file of at most .*; export the network again"
        ):
            load_model(folder).load()


def test_weights_of_ones_own_are_loaded_by_their_path(exports, tmp_path):
    model = load_model(exports[0])
    state = {name: torch.zeros_like(tensor) for name, tensor in model.load().state_dict().items()}
    torch.save(state, tmp_path / "mine.pt")
    assert not model.load(tmp_path / "mine.pt")(torch.randn(2, 1, 28, 28)).any()


def test_the_page_on_usage_names_what_an_export_holds():
    assert "verification.json" in (ROOT / "docs" / "usage.md").read_text()
