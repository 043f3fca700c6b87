"""The README is true: its example runs, its commands parse, and the files it names exist."""

import re
import shlex
import sys

from conftest import ROOT

README = (ROOT / "README.md").read_text()
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)).splitlines()


def test_python_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {"__name__": "example"})
    assert "Cost(params=" in capsys.readouterr().out
    page = (ROOT / "docs" / "freezing.md").read_text()
    example = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    exec(example, {"__name__": "example"})
    assert f"# {capsys.readouterr().out.strip()}\n" in example


def test_the_walk_through_a_new_space_runs_and_is_short(capsys):
    page = (ROOT / "docs" / "new-space.md").read_text()
    declaration, use = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len([line for line in declaration.splitlines() if line.strip()]) <= 30
    exec(declaration + use, {"__name__": "example"})
    assert f"# {capsys.readouterr().out.strip()}\n" in use


def test_every_command_parses(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import benchmark
    import evaluate
    import export
    import freezing
    import report
    import spaces
    import study
    import train

    tools = {"train.py": train, "evaluate.py": evaluate, "export.py": export}
    tools |= {"freezing.py": freezing, "spaces.py": spaces, "benchmark.py": benchmark}
    tools |= {"study.py": study, "report.py": report}
    parsed = 0
    for line in BASH:
        for command in line.split("&&"):
            words = shlex.split(command)
            if len(words) > 1 and words[1].startswith("tools/"):
                module = tools[words[1].removeprefix("tools/")]
                _, bound, _ = module.app.parse_args(words[2:], exit_on_error=False, print_error=False)
                assert bound.arguments or not words[2:]
                parsed += 1
    assert parsed >= 6
    assert sys.modules["common"]


def test_both_set_up_commands_make_their_environment_and_ci_runs_the_second():
    main, test = [line for line in BASH if line.startswith("python3 -m venv .venv")]
    assert main.endswith("python tools/study.py")
    assert test.endswith(".venv/bin/python -m pytest -q")
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_files_in_the_map_exist():
    rows = re.findall(r"^\| (`[a-z/_.]+`(?:, `[a-z/_.]+`)*) \|", README, flags=re.MULTILINE)
    assert len(rows) == 26
    for row in rows:
        first, *others = re.findall(r"`([a-z/_.]+)`", row)
        for name in (first, *(f"{first.rpartition('/')[0]}/{other}" for other in others)):
            assert (ROOT / name).exists(), name


def test_nothing_grows_beyond_what_one_can_hold_in_mind():
    for file in [*(ROOT / "mnas").glob("*.py"), *(ROOT / "tools").glob("*.py")]:
        assert len(file.read_text().splitlines()) <= 400, file
