"""The function `load` of exported source, in its forms."""

from __future__ import annotations

PLAIN_LOAD = '''
def load(weights=Path(__file__).with_name("weights.pt")):
    """The trained network, in evaluation mode."""
    net = Net()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()
'''

VERIFIED_LOAD = '''
def load(weights=None):
    """The trained network, in evaluation mode. This file and weights.pt must be as
    verification.json has them; weights of your own, given by their path, are not compared
    with anything."""
    net = Net()
    if weights is None:
        weights = BytesIO(_verified())
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()


def _verified():
    """The content of weights.pt. Raises ValueError for a file that is not as it was exported."""
    here = Path(__file__).parent
    try:
        about = json.loads(_read(here / "verification.json", 1 << 20))
        names = ("model.py", "weights.pt")
        exported = {name: (int(about["bytes"][name]), about["sha256"][name]) for name in names}
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{here}/verification.json is damaged ({error}); export the network again"
        ) from error
    for name, (size, digest) in exported.items():
        content = _read(here / name, size)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(
                f"{here / name} is not as it was exported (SHA-256); export the network again"
            )
    return content


def _read(file, most):
    if not file.is_file() or file.stat().st_size > most:
        raise ValueError(
            f"{file} is no regular file of at most {most} bytes; export the network again"
        )
    return file.read_bytes()
'''


SAFE_LOAD = (
    VERIFIED_LOAD.replace("weights.pt", "weights.safetensors")
    .replace("weights = BytesIO(_verified())", "content = _verified()")
    .replace(
        "    net.load", "    else:\n        content = Path(weights).read_bytes()\n    net.load"
    )
    .replace(
        'torch.load(weights, map_location="cpu", weights_only=True)',
        "safetensors.torch.load(content)",
    )
)
LOADS = {(False, False): PLAIN_LOAD, (True, False): VERIFIED_LOAD, (True, True): SAFE_LOAD}
"""By whether the files are verified, and whether the weights are in safetensors."""


def imports_of(load: str) -> list[str]:
    """Of the standard library, and of others, one a line."""
    standard = ["import hashlib", "import json"] if "hashlib" in load else []
    standard += ["from io import BytesIO"] if "BytesIO" in load else []
    others = ["import safetensors.torch"] if "safetensors.torch" in load else []
    return [
        "\n".join([*standard, "from pathlib import Path"]),
        "\n".join([*others, "import torch"]),
    ]
