"""`mnas train --rule`: every rule resumes bit for bit; what does not fit is one line and status
2."""

import json
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import torch
from conftest import forget
from running import in_process, same_results

import mnas
from mnas.commands.train import Options
from mnas.errors import Failure
from mnas.storage.schema import ScratchSettings, SupernetSettings
from mnas.training import inherited, one_run
from mnas.training.registry import RULES
from mnas.training.saved import open_run
from mnas.training.trainer import Trainer

QUICK = ("--limit-train", 300, "--limit-test", 60, "--batch-size", 30, "--epochs", 1)
QUICK += ("--threads", 1, "--lr", 0.02)
OPTIONS = {
    "single_path": (),
    "fair": (),
    "sandwich": ("--random-paths", 1),
    "distilled": ("--temperature", 2, "--distill-weight", 0.25),
    "path_dropout": ("--drop", 0.7, "--ghost", 16, "--augment", "shift"),
    "ranked": ("--rank-weight", 2),
    "dynamic": ("--decay-smallest", 3, "--precision", "bf16", "--momentum-groups", 2),
}


@pytest.fixture
def train(monkeypatch, capsys):
    def run(*arguments):
        return in_process(monkeypatch, capsys, "train", *arguments, validation=60)

    return run


@pytest.fixture
def teacher(train, tmp_path):
    out = tmp_path / "teacher"
    network = ("--mode", "scratch", "--arch", "conv5x5-conv3x3")
    assert train(*network, *QUICK, "--out", out)[0] == 0
    return out


def of_teacher(rule, request):
    return ("--teacher", request.getfixturevalue("teacher")) if rule == "distilled" else ()


def stopped(monkeypatch, at):
    """A training that fails before its step `at`."""
    advance = Trainer.advance

    def go_on(self):
        if self.step == at:
            raise Failure("stopped by the test")
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", go_on)
    return lambda: monkeypatch.setattr(Trainer, "advance", advance)


def test_every_rule_is_here():
    assert list(OPTIONS) == list(RULES)


def test_registry_runs_and_command_line_know_the_same_rules_and_options():
    of_runs = {
        settings: get_type_hints(settings)["rule"]
        for settings in (SupernetSettings, ScratchSettings)
    }
    named, _ = get_args(get_type_hints(Options)["rule"])  # the other is None
    assert get_args(named) == get_args(of_runs[SupernetSettings]) == tuple(RULES)
    alone = tuple(name for name, rule in RULES.items() if rule.alone)
    assert get_args(of_runs[ScratchSettings]) == alone
    for rule in RULES.values():
        assert rule.options.keys() <= {f.name for f in fields(Options)}
        assert rule.options.keys() <= set(SupernetSettings.__struct_fields__)
        if rule.alone:
            assert rule.options.keys() <= set(ScratchSettings.__struct_fields__)


@pytest.mark.parametrize("rule", OPTIONS)
def test_every_rule_resumes_bit_for_bit(rule, train, request, monkeypatch, tmp_path):
    arguments = ("--mode", "supernet", "--rule", rule, *OPTIONS[rule], *QUICK)
    arguments += (*of_teacher(rule, request), "--checkpoint-every", 3)
    whole, out = tmp_path / "a", tmp_path / "b"
    status, _, error = train(*arguments, "--out", whole)
    assert status == 0, error
    go_on = stopped(monkeypatch, at=7)
    status, _, error = train(*arguments, "--out", out)
    assert (status, "stopped by the test" in error) == (1, True)
    go_on()
    status, said, error = train("--resume", "--out", out)
    assert status == 0, error
    assert "continuing at step 6 of 10" in said
    same_results(whole, out)
    config = json.loads((out / "config.json").read_text())
    assert config.get("rule", "single_path") == rule
    own = {"sandwich": {"random_paths": 1}, "ranked": {"random_paths": 2, "rank_weight": 2.0}}
    assert {k: config[k] for k in own.get(rule, {})} == own.get(rule, {})


def test_runs_of_a_single_path_have_no_setting_of_rules(train, tmp_path):
    """As those from before there were rules, which go on: none of their settings is missing."""
    out = tmp_path / "run"
    arguments = ("--mode", "supernet", "--rule", "single_path", *QUICK, "--out", out)
    assert train(*arguments)[0] == 0
    config = json.loads((out / "config.json").read_text())
    known = {name for rule in RULES.values() for name in rule.options}
    assert not {"rule", "teacher_sha256", *known} & config.keys()
    forget(out, "summary.json")
    assert train("--resume", "--rule", "single_path", "--out", out)[0] == 0


def test_a_resumed_run_keeps_its_rule(train, teacher, tmp_path):
    out = tmp_path / "run"
    rule = ("--rule", "distilled", "--teacher", teacher)
    assert train("--mode", "supernet", *rule, *QUICK, "--out", out)[0] == 0
    forget(out, "summary.json")
    for given, message in [
        (("--rule", "fair"), "was begun with --rule distilled, not fair"),
        (("--rule", "single_path"), "was begun with --rule distilled, not single_path"),
        (("--temperature", 3), "was begun with --temperature 1.0, not 3.0"),
        (("--drop", 0.5), "--drop 0.5 is for --rule path_dropout; leave it out"),
    ]:
        status, _, error = train("--resume", "--out", out, *given)
        assert (status, error.count("\n")) == (2, 1)
        assert message in error
    assert train("--resume", "--out", out)[0] == 0


def test_a_teacher_that_has_changed_is_noticed(train, teacher, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    rule = ("--rule", "distilled", "--teacher", teacher)
    assert train("--mode", "supernet", *rule, *QUICK, "--out", out)[0] == 0
    forget(out, "summary.json")
    network = ("--mode", "scratch", "--arch", "conv5x5-conv3x3", "--seed", 5)
    assert train(*network, *QUICK, "--out", other)[0] == 0
    teacher.rename(tmp_path / "before")
    other.rename(teacher)
    status, _, error = train("--resume", "--out", out)
    assert (status, error.count("\n")) == (2, 1)
    assert "holds other weights than when the run was begun" in error


def test_one_network_learns_from_a_supernets_largest(train, tmp_path):
    """The teacher is a supernet's run: its dearest network, recalibrated as it was scored."""
    teacher, out, alone = (tmp_path / name for name in ("teacher", "out", "alone"))
    space = ("--space", "mil9")
    assert train("--mode", "supernet", *space, *QUICK, "--out", teacher)[0] == 0
    network = ("--mode", "scratch", "--arch", "conv3x3-conv3x3", *QUICK)
    taught = ("--rule", "distilled", "--teacher", teacher)
    assert train(*network, *taught, "--out", out)[0] == 0
    assert train(*network, "--out", alone)[0] == 0
    ours, theirs = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (out, alone))
    assert not torch.equal(*(s["weights"]["conv3x3-conv3x3"]["0.weight"] for s in (ours, theirs)))
    data = one_run.load(json.loads((teacher / "config.json").read_text()), tmp_path)
    run = open_run(teacher)
    *_, largest = run.space.paths()
    alone = mnas.recalibrate(run.network(run.space.format(largest)), data.train.images[:2000])
    taught = inherited.teacher(teacher, data)
    assert not taught.training
    for a, b in zip(taught.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(a, b)


SUPERNET, SCRATCH = ("--mode", "supernet"), ("--mode", "scratch", "--arch", "all")
BAD = {
    "option of another rule": (
        (*SUPERNET, "--drop", 0.5),
        "--drop 0.5 is for --rule path_dropout; leave it out",
    ),
    "option of other rules": (
        (*SUPERNET, "--rule", "fair", "--random-paths", 3),
        "--random-paths 3 is for --rule sandwich or ranked; leave it out",
    ),
    "sampler": (
        (*SUPERNET, "--rule", "fair", "--sampler", "uniform"),
        "sampler='uniform'; rule fair expects fair",
    ),
    "no teacher": (
        (*SUPERNET, "--rule", "distilled"),
        "--teacher is missing; expected the directory of a finished run",
    ),
    "teacher that is none": (
        (*SUPERNET, "--rule", "distilled", "--teacher", "tests"),
        "tests is not a run directory",
    ),
    "everything dropped": (
        (*SUPERNET, "--rule", "path_dropout", "--drop", 1),
        "drop=1.0; expected a number from 0 to below 1",
    ),
    "one path": (
        (*SUPERNET, "--rule", "ranked", "--random-paths", 1),
        "random_paths=1; rule ranked compares two",
    ),
    "no paths": (
        (*SUPERNET, "--rule", "sandwich", "--random-paths", 0),
        'Invalid value "0" for --random-paths',
    ),
    "rule of supernets": (
        (*SCRATCH, "--rule", "fair"),
        "rule fair trains a supernet; expected one of single_path, distilled for one network",
    ),
    "unknown rule": (
        (*SUPERNET, "--rule", "sandwitch"),
        'Invalid value "sandwitch" for --rule. Choose from: "single_path"',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(case, train, tmp_path):
    arguments, message = BAD[case]
    status, _, error = train(*arguments, *QUICK, "--out", tmp_path / "run")
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists()
