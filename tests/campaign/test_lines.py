"""Hundreds of wrong command lines, and dozens of odd environments: one line that says what is
wrong, or the right result. The lines run in forked children, the environments in fresh
processes."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from extent import share
from test_damage import Server, verdict

WORDS = ("x", "", "../x", "a" * 5000, "all ", "\n", "--", "é", "0", "-1")
INTEGERS = ("x", "", "1.5", "-1", "1e3", "nan", "inf", "9" * 40, "0x10", "True", "1 2", "9" * 5000)
NUMBERS = ("x", "", "-1", "0", "nan", "inf", "-inf", "1e400", "1,5", "True")
RULES = ("distilled", "fair=", "fair=x", "fair=0", "fair=-1", "fair=nan", "=2", "fair=1=1")
GROUPS = ("x", "", "choice0", "choice0=", "choice0=x", "=conv3x3", "choice9=conv3x3", "x=x=x")
PATHS = ("", "x" * 300, "/dev/null/x", "/proc/nothing/x", "~nobody-of-that-name/x", "a\0b")
SCHEDULERS = ("x", "", "tcp://127.0.0.1:1", "none.json")  # without --backend dask
SHARES = (*(number for number in NUMBERS if number != "0"), "1.5", "2")
WEIGHTS = (*(number for number in NUMBERS if number != "0"), "1e7")
DEVICES = (*WORDS, "cuda:0", "gpu", "CPU", *(["cuda"] if not torch.cuda.is_available() else []))
SUPERNET = {"--mode": "supernet", "--out": "out"}
SCRATCH = {"--mode": "scratch", "--arch": "all", "--out": "out"}
OPTIONAL = {
    "train": {"--out"},
    "study": {"--out", "--runs"},
    "rank alone": {"--out", "--networks", "--dataset", "--data-root"},
}
# Of each tool, or of a part of it: what a good line of it needs, and its options by kind.
TOOLS = [
    (
        "train",
        SUPERNET,
        {
            "--mode": WORDS,
            "--space": WORDS,
            "--dataset": WORDS,
            "--sampler": WORDS,
            "--execution": WORDS,
        },
        {"--rule": WORDS, "--random-paths": INTEGERS, "--drop": NUMBERS, "--teacher": PATHS},
        {
            "--bn": WORDS,
            "--policy": WORDS,
            "--precision": WORDS,
            "--augment": WORDS,
            "--seed": INTEGERS,
        },
        {
            "--batch-size": INTEGERS,
            "--limit-train": INTEGERS,
            "--limit-test": INTEGERS,
            "--threads": INTEGERS,
        },
        {"--validate-every": INTEGERS, "--epochs": NUMBERS, "--lr": NUMBERS, "--out": PATHS},
        {"--device": DEVICES, "--resolution": (*INTEGERS, "0", "1", "4097")},
        {"--checkpoint-every": INTEGERS, "--jobs": (*INTEGERS, "2"), "--start": PATHS},
        {"--data-root": PATHS[-2:], "--arch": WORDS, "--group": GROUPS},
        {"--keep-checkpoints": (*INTEGERS, "0", "5")},
        # In place of a value: options of rules that are not the one that is meant.
        {"--paths-per-rank": ("--threads",), "--momentum-groups": ("2",), "--ghost": ("16",)},
        {"--temperature": ("2",), "--rank-weight": ("1",), "--decay-largest": ("1",)},
        {"--log": WORDS, "--backend": WORDS, "--scheduler": SCHEDULERS},
    ),
    ("train", {**SUPERNET, "--rule": "sandwich"}, {"--random-paths": (*INTEGERS, "0", "1e9")}),
    (
        "train",
        {**SUPERNET, "--rule": "ranked"},
        {"--random-paths": (*INTEGERS, "1"), "--rank-weight": WEIGHTS},
    ),
    ("train", {**SUPERNET, "--rule": "fair"}, {"--sampler": (*WORDS, "uniform")}),
    (
        "train",
        {**SUPERNET, "--rule": "path_dropout"},
        {"--drop": (*SHARES, "1"), "--ghost": (*INTEGERS, "0")},
    ),
    (
        "train",
        {**SUPERNET, "--rule": "dynamic"},
        {"--momentum-groups": (*INTEGERS, "0"), "--drop": ("0.5",)},
        {"--decay-smallest": (*NUMBERS, "1e7"), "--decay-largest": (*NUMBERS, "1e7")},
    ),
    (
        "train",
        {**SUPERNET, "--rule": "distilled", "--teacher": "none"},
        {"--teacher": PATHS, "--temperature": NUMBERS, "--distill-weight": SHARES},
    ),
    (
        "train",
        SCRATCH,
        {"--rule": (*WORDS, "fair", "sandwich", "path_dropout", "ranked", "dynamic")},
        {"--arch": WORDS, "--start": PATHS, "--jobs": INTEGERS, "--policy": ("frozen", "torch")},
    ),
    (
        "evaluate",
        {"--checkpoint": "none"},
        {"--checkpoint": PATHS, "--arch": WORDS, "--threads": INTEGERS, "--device": DEVICES},
        {"--bn": WORDS, "--split": WORDS, "--limit-test": INTEGERS, "--seed": INTEGERS},
    ),
    (
        "search",
        {"--checkpoint": "none"},
        {"--checkpoint": PATHS, "--sampler": WORDS, "--trials": INTEGERS, "--batch": INTEGERS},
        {"--max-macs": INTEGERS, "--aims": WORDS, "--storage": PATHS, "--out": PATHS},
    ),
    (
        "export",
        {"--checkpoint": "none", "--arch": "conv3x3-conv3x3", "--out": "out"},
        {"--checkpoint": PATHS, "--arch": WORDS, "--seed": INTEGERS, "--format": WORDS},
    ),
    (
        "rank",
        {"--checkpoint": "none"},
        {"--checkpoint": PATHS, "--networks": INTEGERS, "--half": WORDS, "--bn": WORDS},
        {"--images": INTEGERS, "--bn-images": INTEGERS, "--seed": INTEGERS, "--out": PATHS},
        {"--average": (*INTEGERS, "0")},
    ),
    (
        "rank alone",
        {"--score": "synflow", "--networks": "50", "--out": "out"},
        {"--score": WORDS, "--space": (*WORDS, "mil4"), "--half": WORDS},
        {"--resolution": (*INTEGERS, "0", "4097"), "--networks": (*INTEGERS, "0")},
        {"--some": (*INTEGERS, "0"), "--seed": INTEGERS, "--start-seed": INTEGERS},
        {"--epochs": (*NUMBERS, "1"), "--jobs": (*INTEGERS, "0"), "--threads": (*INTEGERS, "0")},
        {"--out": PATHS, "--checkpoint": ("none",)},
    ),
    (
        "rank alone",
        {"--score": "short", "--dataset": "folder", "--data-root": "none", "--out": "out"},
        {"--dataset": WORDS, "--data-root": PATHS, "--epochs": NUMBERS},
    ),
    (
        "study",
        {"--out": "out", "--runs": "runs"},
        {"--space": WORDS, "--recipe": WORDS, "--seeds": INTEGERS, "--device": DEVICES},
        {"--rules": (*WORDS, *RULES), "--epochs": NUMBERS, "--truth": PATHS, "--jobs": INTEGERS},
        {"--networks": (*INTEGERS, "1"), "--seed": INTEGERS, "--limit-train": INTEGERS},
        {"--backend": (*WORDS, "dask"), "--scheduler": SCHEDULERS},
    ),
]
NO_FAULT = {("--seed", "0"), ("--arch", "--"), ("--rules", "--")}


def wrong_lines():
    for tool, needed, *kinds in TOOLS:
        for option, values in (
            (option, values) for kind in kinds for option, values in kind.items()
        ):
            for value in values:
                if "\0" not in value and (option, value) not in NO_FAULT:
                    yield (
                        tool,
                        [part for pair in {**needed, option: value}.items() for part in pair],
                    )
        line = [part for pair in needed.items() for part in pair]
        yield from (
            (tool, [*line, extra])
            for extra in ("x", "--no-such", "-q", "--seed", "--mode=", "--threads=1=1")
        )
        for missing in needed.keys() - OPTIONAL.get(tool, set()) - {"--rule"}:
            yield tool, [part for pair in needed.items() if pair[0] != missing for part in pair]


@pytest.mark.slow
def test_a_wrong_command_line_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    serve = Server()
    wrong, number = {}, 0
    for tool, line in wrong_lines():
        number += 1
        outcome = serve(*tool.split(), *line)
        if (
            outcome[0] != 2
            or verdict(outcome, "") != "refused"
            or len(outcome[2]) > 1000
            or list(tmp_path.iterdir())
        ):
            wrong[tool, shlex.join(line)[:200]] = (
                outcome[0],
                outcome[2][-500:],
                list(tmp_path.iterdir()),
            )
            for left in tmp_path.iterdir():
                shutil.rmtree(left, ignore_errors=True)
    serve.stop()
    print(f"\n{number} command lines", *wrong.items(), sep="\n")
    assert not wrong
    assert number >= 900


COMMAND = (
    "--mode scratch --arch conv3x3-conv3x3 --limit-train 64 --limit-test 20 --batch-size 32 "
    "--epochs 0.5 --out run"
)
ENVIRONMENTS = [
    *(
        {"OMP_NUM_THREADS": value}
        for value in ("0", "-1", "abc", "1,2", "", "999999", " 2 ", "1.5")
    ),
    *({"MKL_NUM_THREADS": value} for value in ("0", "abc")),
    *({"LANG": value, "LC_ALL": value} for value in ("C", "POSIX", "xx_XX", "tr_TR.UTF-8", "")),
    *({"PYTHONIOENCODING": value} for value in ("ascii", "utf-16", "latin-1")),
    *({"PYTHONUTF8": value} for value in ("0", "1")),
    *({"HOME": value} for value in (None, "/nowhere", "", "/dev/null")),
    *({"TERM": value} for value in (None, "dumb", "nonsense")),
    *({"COLUMNS": value} for value in ("0", "1", "abc", "-5", "100000")),
    *({"PYTHONHASHSEED": value} for value in ("0", "1")),
    *({"PYTHONOPTIMIZE": value} for value in ("1", "2")),
    *({"PYTHONWARNINGS": value} for value in ("error", "always")),
    *({"TMPDIR": value} for value in ("/nowhere", "")),
    *({"PATH": value} for value in ("", "/nowhere")),
    *({"GIT_DIR": value} for value in ("/nowhere", "")),
    {"PYTHONDONTWRITEBYTECODE": "1"},
    {"PYTHONUNBUFFERED": "1"},
    {"PYTHONDEVMODE": "1"},
    {"MPLCONFIGDIR": "/dev/null/x"},
    {"MPLBACKEND": "nonsense"},
    {"XDG_CACHE_HOME": "/dev/null"},
    {"TZ": "Nowhere/Never"},
    {"CUDA_VISIBLE_DEVICES": "nonsense"},
    {"NO_COLOR": "1"},
    {"FORCE_COLOR": "1"},
    {"USER": None, "LOGNAME": None},
    {"SOURCE_DATE_EPOCH": "x"},
    {"GIT_CONFIG_GLOBAL": "/dev/zero/x"},
]
STREAMS = [
    "<&-",
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>&1",
    "| head -c 1 >/dev/null",
    "2>&1 | true",
    "</dev/full",
    "| cat",
    "2>&1 >&-",
]
LIMITS = {
    "few files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    "no core": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "small files": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    "low priority": lambda: os.nice(19),
    "umask 777": lambda: os.umask(0o777),
}
SIGNALS = [
    (number, moment)
    for number in ("SIGINT", "SIGTERM", "SIGHUP")
    for moment in (0.3, 1.0, 2.0, 3.0, 4.0)
]


def train(folder, changes=(), streams="2>errors", before=lambda: None):
    environment = {
        key: value for key, value in {**os.environ, **dict(changes)}.items() if value is not None
    }
    command = (
        f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'tools' / 'train.py'))} "
        f"{COMMAND} {streams}"
    )
    return subprocess.run(
        ["/bin/bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
        preexec_fn=before,
    )


def accuracies(folder):
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return [(path["arch"], path["val_top1"]) for path in summary["paths"]]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    assert train(folder).returncode == 0
    return accuracies(folder)


@pytest.mark.slow
def test_the_environment_changes_no_result(expected, tmp_path):
    cases = [(str(e), e, "2>errors", lambda: None) for e in ENVIRONMENTS]
    cases += [(s, {}, s, lambda: None) for s in STREAMS]
    cases += [(name, {}, "2>errors", before) for name, before in LIMITS.items()]
    wrong = {}
    for number, (name, changes, streams, before) in enumerate(share(cases, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = train(folder, changes, streams, before)
        errors = folder / "errors"
        said = (
            errors.read_text(errors="replace")
            if errors.exists() and os.access(errors, os.R_OK)
            else done.stderr
        )
        refused = (
            done.returncode in (1, 2)
            and said.splitlines()[-1:]
            and "error: " in said.splitlines()[-1]
        )
        right = (folder / "run" / "summary.json").exists() and accuracies(folder) == expected
        if "Traceback" in said or not (right or refused):
            wrong[name] = (done.returncode, said[-600:])
    print(f"\n{len(cases)} environments", *wrong.items(), sep="\n")
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "moment"), share(SIGNALS, 2))
def test_a_signal_at_any_moment_is_one_line(kind, moment, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *shlex.split(COMMAND)]

    def default():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=errors, preexec_fn=default
        )
        time.sleep(moment)
        process.send_signal(getattr(signal, kind))
        status = process.wait(timeout=60)
    said = (tmp_path / "errors").read_text()
    number = getattr(signal, kind)
    if status == 0:
        assert "Traceback" not in said  # on a fast machine it has ended before
    elif status == -number:
        assert (kind, said) != ("SIGINT", ""), "before the tool began, the system ends it"
    else:
        lines = said.splitlines()
        assert status == 128 + number
        assert len(lines) == 1, said
        assert lines[0].startswith("error: ")
