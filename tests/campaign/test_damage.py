"""Thousands of damaged files given to the tools: refused in one line or of no consequence; never
used in silence, never a traceback, never a hang, never executed."""

import contextlib
import hashlib
import json
import random
import shutil
import struct
from collections import Counter

import damage
import processes
import pytest
from extent import SEED, WHOLE
from test_kills import SHORT, STUDY, content

PER_FILE = 40 if WHOLE else 1  # of each way and file
PATIENCE = 60  # seconds


class Server:
    """A child that does one job after another; another child takes over when one dies or hangs."""

    def __init__(self):
        self.forked = processes.context()
        self.child = None

    def __call__(self, *job):
        if self.child is None:
            self.ours, theirs = self.forked.Pipe()
            self.child = self.forked.Process(target=processes.serve, args=(theirs,), daemon=True)
            self.child.start()
            theirs.close()
        try:
            self.ours.send(job)
            if self.ours.poll(PATIENCE):
                return self.ours.recv()
            outcome = "hangs"
        except EOFError:
            outcome = "dies"
        self.stop()
        return 98, "", outcome

    def stop(self):
        if self.child is not None:
            self.child.kill()
            self.child.join()
            self.child = None


@pytest.fixture(scope="module")
def serve():
    server = Server()
    yield server
    server.stop()


def verdict(outcome, expected, forged=False):
    """What the outcome is worth. forged: the digests fit, so another content may be used, if it
    makes sense."""
    status, out, error = outcome[:3]
    lines = error.splitlines()
    if status in (1, 2) and lines and lines[-1].startswith("error: "):
        problems = [line for line in lines[:-1] if not line.startswith("note: ")]
        return "refused" if not problems else f"says more: {problems}"
    if status == 0:
        return "harmless" if out == expected else "another" if forged else "silent"
    return f"status {status}: {error[-2000:]}"


@pytest.fixture(scope="module")
def made(serve, tmp_path_factory):
    """A finished run, one that was stopped in the middle, a study and an export."""
    folder = tmp_path_factory.mktemp("made")
    run = folder / "run"
    run_of = ("train", "--mode", "supernet", *SHORT)
    assert serve(*run_of, "--out", run)[0] == 0
    stopped = folder / "stopped"
    _, theirs = serve.forked.Pipe(duplex=False)
    child = serve.forked.Process(
        target=processes.alone, args=("train", (*run_of[1:], "--out", stopped), 45, theirs)
    )
    child.start()
    child.join()
    assert (child.exitcode, (stopped / "checkpoint.pt").exists()) == (-9, True)
    study = ("study", *STUDY, "--runs", folder / "runs", "--out", folder / "study")
    assert serve(*study)[0] == 0
    assert (
        serve(
            "export", "--checkpoint", run, "--arch", "conv3x3-conv5x5", "--out", folder / "export"
        )[0]
        == 0
    )
    return folder


def result(text):
    """The table that a training ends with."""
    return [
        line for line in text[text.find("\narch ") :].splitlines() if " s of training" not in line
    ]


def digest_of(folder):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


class Jobs:
    """What a user does with a folder; each returns status, what is compared, and stderr. draws:
    whether a report makes its images, too, which are not compared."""

    def __init__(self, serve, folder, trains, draws):
        self.serve, self.folder, self.trains = serve, folder, trains
        self.reports = "report" if draws else "report without images"

    def evaluate(self):
        status, out, error = self.serve("evaluate", "--checkpoint", self.folder, "--arch", "all")
        return status, out, error

    def export(self):
        target = self.folder.parent / "exported"
        shutil.rmtree(target, ignore_errors=True)
        status, _, error = self.serve(
            "export", "--checkpoint", self.folder, "--arch", "conv5x5-conv3x3", "--out", target
        )
        return status, digest_of(target) if status == 0 else None, error

    def resume(self):
        status, out, error = self.serve(
            "train", "--resume", "--out", self.folder, "--checkpoint-every", 1
        )
        # A finished run only shows its table; what is damaged stays so, and is refused when it is
        # needed.
        return (
            status,
            (result(out), content(self.folder) if self.trains else None) if status == 0 else None,
            error,
        )

    def report(self):
        status, out, error = self.serve(self.reports, self.folder)
        return (
            status,
            (out, (self.folder / "README.md").read_text()) if status == 0 else None,
            error,
        )

    def load(self):
        return self.serve("load", self.folder)


def variants(file, canary):
    """Name, and an action that damages the file."""
    data = file.read_bytes()
    found = [*damage.of_bytes(data, random.Random(SEED), 2 * PER_FILE), *damage.foreign(canary)]
    if file.suffix in (".json", ".jsonl"):
        found += damage.sample(damage.of_json(data.decode()), 2 * PER_FILE, SEED)
    yield from (
        (name, lambda content=content: file.write_bytes(content)) for name, content in found
    )
    yield from damage.replaced_by(file)


def forgeries(file, canary):
    """Name, and an action that gives the file another content and the manifest what fits it."""
    data = file.read_bytes()
    found = list(damage.foreign(canary))
    if file.suffix in (".json", ".jsonl"):
        found += damage.sample(damage.of_json(data.decode()), 4 * PER_FILE, SEED)
    else:
        found += damage.of_bytes(data, random.Random(SEED), PER_FILE)
    return [(name, lambda content=content: _forge(file, content)) for name, content in found]


def _forge(file, content):
    file.write_bytes(content)
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["files"][file.name] = [
        {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    ]
    (file.parent / "manifest.json").write_text(json.dumps(manifest))


RIGHT = ("refused", "harmless", "another")
FOLDERS = {
    "run": ("evaluate", "export", "resume"),
    "stopped": ("resume", "evaluate", "export"),
    "study": ("report",),
    "export": ("load",),
}
# Not damages: times alone, which no result depends on; pages and images, which are made anew;
# model.py, whose text the reader of the export runs before it can be verified.
MADE_ANEW = (".png", ".md", ".py")


@pytest.mark.slow
@pytest.mark.parametrize("forged", [False, True], ids=["damaged", "forged"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_no_damage_is_used_in_silence(kind, forged, made, serve, tmp_path):
    if forged and kind == "export":
        pytest.skip("its digests are in model.py, which is code")
    canary = tmp_path / "canary"
    work = tmp_path / "work"
    found, wrong = Counter(), {}

    def fresh(number=0):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(made / kind, work)
        # A damaged study is refused, or is reported as it was before: only what is forged can give
        # an image that was not drawn at the beginning.
        draws = WHOLE or (forged and number % 4 == 0)
        return Jobs(serve, work, trains=kind == "stopped", draws=draws)

    expected = {job: getattr(fresh(), job)() for job in FOLDERS[kind]}
    assert {e[0] for e in expected.values()} == {0}
    for name in sorted(f.name for f in (made / kind).iterdir()):
        if name.startswith(".") or name.endswith(MADE_ANEW) or (forged and name == "manifest.json"):
            continue
        fresh()
        actions = list((forgeries if forged else variants)(work / name, canary))
        for number, (label, action) in enumerate(actions):
            job = FOLDERS[kind][number % len(FOLDERS[kind])]
            jobs = fresh(number)
            action()
            said = verdict(getattr(jobs, job)(), expected[job][1], forged)
            found[name, said if said in RIGHT else "WRONG"] += 1
            if said not in RIGHT:
                wrong[name, label, job] = said
            with contextlib.suppress(OSError):
                (work / name).unlink()  # no pipe and no terabyte is copied or read
    print("\n", kind, "forged" if forged else "damaged", sum(found.values()), dict(found))
    assert not wrong
    assert not canary.exists()


def idx(array):
    return struct.pack(f">HBB{array.dim()}I", 0, 8, array.dim(), *array.shape) + bytes(
        array.flatten().tolist()
    )


@pytest.mark.slow
def test_no_damage_of_a_data_set_is_used_in_silence(serve, tmp_path, mnist):
    """Images of ours under a published name: every change of them is either refused or said to be
    unknown."""
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, split, size in (("train", mnist.train, 6_000), ("t10k", mnist.test, 100)):
        images = (
            (split.images[:size] * 0.3081 + 0.1307).mul(255).round().clamp(0, 255).byte().squeeze(1)
        )
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(split.labels[:size].byte()))

    def train():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return serve(
            "train",
            "--mode",
            "scratch",
            "--arch",
            "conv3x3-conv3x3",
            "--dataset",
            "fashion-mnist",
            "--data-root",
            tmp_path / "data",
            "--out",
            tmp_path / "out",
            "--limit-train",
            64,
            "--limit-test",
            20,
            "--epochs",
            0.5,
        )

    status, _, error = train()
    assert (status, "not known to be the published data set" in error) == (0, True), error
    found, wrong = Counter(), {}
    for file in sorted(raw.iterdir()):
        data = file.read_bytes()
        header = list(damage.of_bytes(data[:16], random.Random(SEED), PER_FILE))
        contents = [(label, changed + data[16:]) for label, changed in header]
        contents += [
            *damage.of_bytes(data, random.Random(SEED), max(1, PER_FILE // 5)),
            *damage.foreign(tmp_path / "canary"),
        ]
        actions = [(label, lambda c=c, f=file: f.write_bytes(c)) for label, c in contents]
        for label, action in [*actions, *damage.replaced_by(file)]:
            action()
            status, _, error = train()
            said = verdict((status, "", error), None)
            if said == "silent" and "not known to be the published data set" in error:
                said = "said to be unknown"
            found[said if said in ("refused", "said to be unknown") else "WRONG"] += 1
            if said not in ("refused", "said to be unknown"):
                wrong[file.name, label] = said
            with contextlib.suppress(OSError):
                file.unlink() if not file.is_dir() else file.rmdir()
            file.write_bytes(data)
    print("\n idx", sum(found.values()), dict(found))
    assert not wrong
    assert not (tmp_path / "canary").exists()
