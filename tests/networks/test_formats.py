"""Formats of export, each run where mnas is unknown, on real images."""

import json
import subprocess
import sys

import pytest
import torch
import torchvision
from conftest import ROOT
from processes import LOADED
from running import in_process

import mnas
from mnas import errors
from mnas.networks.formats import FORMATS, run_fresh

for package in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
    pytest.importorskip(package)
ABOUT = ("A network.", "For a test.")
OWN = {
    "source": "import model; net = model.load()",
    "safetensors": "import model; net = model.load()",
    "torch-export": "net = torch.export.load('model.pt2').module()",
    "onnx": "import onnxruntime as o; s = o.InferenceSession('model.onnx')\n"
    "def net(x): return torch.tensor(s.run(None, {s.get_inputs()[0].name: x.numpy()})[0])",
}
"""As a user loads them, written again."""


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = mnas.Supernet(mnas.spaces.mil4())
    return mnas.export(net, (0, 1)).eval()


def written(name, network, folder, images):
    folder.mkdir()
    FORMATS[name].write(network, folder, images[:2], ABOUT)
    assert {file.name for file in folder.iterdir()} == set(FORMATS[name].files)
    digests = {file.name: file.read_bytes() for file in folder.iterdir()}
    about = {"bytes": {}, "sha256": {}}
    for file, content in digests.items():
        from mnas.storage.files import Version

        about["bytes"][file] = len(content)
        about["sha256"][file] = Version.of(content).sha256
    (folder / "verification.json").write_text(json.dumps(about))


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_computes_the_same_in_a_fresh_process(name, network, tmp_path):
    images = LOADED.test.images[:33]  # and not only at the size that was traced
    written(name, network, tmp_path / "net", images)
    found = run_fresh(name, tmp_path / "net", images, batch=10)
    with torch.no_grad():
        expected = torch.cat([network(batch) for batch in images.split(10)])
    if name in ("source", "safetensors"):
        assert torch.equal(found, expected)
    assert (found - expected).abs().max() <= 1e-4
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", ["source", "safetensors"])
def test_a_layer_may_be_there_twice_and_lie_in_memory_in_any_way(name, tmp_path):
    layer = torch.nn.Conv2d(3, 3, 3, padding=1).to(memory_format=torch.channels_last)
    net = torch.nn.Sequential(layer, torch.nn.ReLU(), layer, torch.nn.Flatten()).eval()
    images = torch.randn(3, 3, 8, 8)
    written(name, net, tmp_path / "net", images)
    found = run_fresh(name, tmp_path / "net", images)
    torch.testing.assert_close(found, net(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["torch-export", "onnx"])
def test_models_that_are_no_sequence_leave_as_graphs(name, tmp_path):
    model = torchvision.models.resnet18(num_classes=10).eval()
    images = (3, 64, 64)
    space = mnas.convert(model, mnas.rules.kernels("layer4.*", (3, 5)), input_shape=images)
    network = mnas.export(mnas.Supernet(space), space.path(layer4_1_conv2="k5")).eval()
    x = torch.randn(5, *images)
    written(name, network, tmp_path / "net", x)
    torch.testing.assert_close(run_fresh(name, tmp_path / "net", x), network(x), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="cannot write the source of a ResNet"):
        FORMATS["source"].write(network, tmp_path, x[:2], ABOUT)


def test_what_cannot_be_traced_or_run_is_said_in_a_line(network, tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    for name in ("torch-export", "onnx"):
        with pytest.raises(ValueError, match="torch cannot trace this network") as refused:
            FORMATS[name].write(Odd(), tmp_path, torch.randn(2, 3), ABOUT)
        assert "\n" not in str(refused.value)
    written("safetensors", network, tmp_path / "net", LOADED.test.images)
    weights = tmp_path / "net" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"weights.safetensors is not as it was exported"):
        run_fresh("safetensors", tmp_path / "net", LOADED.test.images[:2])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The settings of a supernet that was trained on some thousand images."""
    out = tmp_path_factory.mktemp("runs") / "supernet"
    options = ("--limit-train", 3000, "--batch-size", 50, "--epochs", 1, "--out", out)
    command = [sys.executable, ROOT / "tools" / "train.py", "--mode", "supernet", *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_command_writes_each_format_and_verifies_10000_images(name, run, tmp_path):
    out = tmp_path / "out"
    arguments = ("--checkpoint", run, "--arch", "conv3x3-conv5x5", "--format", name, "--out", out)
    command = [sys.executable, ROOT / "tools" / "export.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "verification.json").read_text())
    assert (report["images"], report["format"]) == (10_000, name)
    assert report["predictions_equal"]
    assert max(report["max_abs_difference"].values()) <= 1e-4
    assert {file.name for file in out.iterdir()} == {*FORMATS[name].files, "verification.json"}
    assert set(report["sha256"]) == set(FORMATS[name].files)
    # The same by a process of our own, against the run itself.
    torch.save(LOADED.test.images, tmp_path / "x.pt")
    script = (
        f"import sys; sys.modules['mnas'] = None; import torch\n{OWN[name]}\n"
        f"x = torch.load({str(tmp_path / 'x.pt')!r})\n"
        "with torch.no_grad(): y = torch.cat([net(b) for b in x.split(300)])\n"
        f"torch.save(y, {str(tmp_path / 'y.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", script], cwd=out, check=True)
    found = torch.load(tmp_path / "y.pt")
    state = torch.load(run / "checkpoint.pt", weights_only=True)["weights"]["supernet"]
    net = mnas.Supernet(mnas.spaces.mil4())
    net.load_state_dict(state)
    with torch.no_grad():
        own = mnas.recalibrate(mnas.export(net, (0, 1)), LOADED.train.images[:2000])
        expected = torch.cat([own.eval()(b) for b in LOADED.test.images.split(300)])
    assert (found - expected).abs().max() <= 1e-4
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize(
    ("name", "missing"), [("onnx", "onnxruntime"), ("safetensors", "safetensors")]
)
def test_a_missing_package_is_named_with_its_extra(name, missing, tmp_path, monkeypatch, capsys):
    real = errors.importlib.util.find_spec

    def find(package, *rest):
        return None if package == missing else real(package, *rest)

    monkeypatch.setattr(errors.importlib.util, "find_spec", find)
    arguments = ("--checkpoint", "none", "--arch", "a", "--out", tmp_path / "e", "--format", name)
    status, _, error = in_process(monkeypatch, capsys, "export", *arguments)
    assert (status, error) == (
        2,
        f"error: {missing} is not installed; pip install 'mnas[{name}]'\n",
    )


def test_a_format_that_is_unknown(monkeypatch, capsys):
    arguments = ("--checkpoint", "none", "--arch", "a", "--out", "e", "--format", "keras")
    status, _, error = in_process(monkeypatch, capsys, "export", *arguments)
    assert status == 2
    assert error.count("\n") == 1
    assert "keras" in error
