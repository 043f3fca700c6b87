"""The files that a network can leave as, and how each is loaded where mnas is unknown."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnas.networks.source import source

About = tuple[str, str]
"""Title and notes of the source."""


class Format(NamedTuple):
    """files: what `write` puts into a folder, given a network, images (2, C, H, W) and what the
    source says about it. load: Python that makes `net`, a function of images, out of them. extra,
    packages: what that needs beside torch."""

    files: tuple[str, ...]
    write: Callable[[nn.Module, Path, Tensor, About], None]
    load: str
    extra: str = ""
    packages: tuple[str, ...] = ()


def _source(network: nn.Module, folder: Path, _: Tensor, about: About) -> None:
    _write_model(folder, source(network, *about, verified=True))
    torch.save(network.state_dict(), folder / "weights.pt")


def _safetensors(network: nn.Module, folder: Path, _: Tensor, about: About) -> None:
    from safetensors.torch import save

    _write_model(folder, source(network, *about, verified=True, safetensors=True))
    # A layer that is there twice is written twice; the format refuses tensors that share memory.
    separate = partial(torch.clone, memory_format=torch.contiguous_format)
    state = {name: separate(tensor) for name, tensor in network.state_dict().items()}
    (folder / "weights.safetensors").write_bytes(save(state))


def _write_model(folder: Path, text: str) -> None:
    (folder / "model.py").write_text(text, encoding="utf-8", newline="\n")


def _torch_export(network: nn.Module, folder: Path, images: Tensor, _: About) -> None:
    with _following():
        program = torch.export.export(network, (images,), dynamic_shapes=_shapes())
    torch.export.save(program, folder / "model.pt2")


def _onnx(network: nn.Module, folder: Path, images: Tensor, _: About) -> None:
    with _following():
        torch.onnx.export(
            network,
            (images,),
            folder / "model.onnx",
            dynamo=True,
            dynamic_shapes=_shapes(),
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )


@contextlib.contextmanager
def _following() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever tracing raises, or a layer that is traced
        reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"torch cannot trace this network ({reason}); export its source, or take mnas.export"
        ) from error


def _shapes() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch")},)


_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
def net(images):
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
"""
FORMATS = {
    "source": Format(("model.py", "weights.pt"), _source, "import model\nnet = model.load()"),
    "safetensors": Format(
        ("model.py", "weights.safetensors"),
        _safetensors,
        "import model\nnet = model.load()",
        "safetensors",
        ("safetensors",),
    ),
    "torch-export": Format(
        ("model.pt2",), _torch_export, 'net = torch.export.load("model.pt2").module()'
    ),
    "onnx": Format(("model.onnx",), _onnx, _ONNX, "onnx", ("onnx", "onnxscript", "onnxruntime")),
}
_RUN = """
import sys
sys.modules["mnas"] = None
sys.path.insert(0, "")
import torch
torch.set_num_threads({threads})
{load}
images = torch.load({images!r}, weights_only=True)
with torch.no_grad():
    logits = torch.cat([net(batch) for batch in images.split({batch})])
torch.save(logits, {logits!r})
"""


def run_fresh(name: str, folder: Path, images: Tensor, batch: int = 500) -> Tensor:
    """Logits (N, classes) of the files in a folder for images (N, C, H, W), computed in a new
    process that has no mnas. Raises RuntimeError with that process's last words if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        given, found = (str(Path(scratch) / n) for n in ("images.pt", "logits.pt"))
        torch.save(images.clone(), given)
        script = _RUN.format(
            threads=torch.get_num_threads(),
            load=FORMATS[name].load,
            images=given,
            batch=batch,
            logits=found,
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", script],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            *_, last = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(last)
        return torch.load(found, weights_only=True)
