"""The README is true, and so is the page that continues it: examples run, commands parse, what they
name exists, and no page is left out."""

import re
import shlex

from conftest import ROOT

README = (ROOT / "README.md").read_text()
USAGE = (ROOT / "docs" / "usage.md").read_text()
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README + USAGE, flags=re.DOTALL)).splitlines()
STEPS = re.findall(r"^\|[^|]*\| `(tools/[^`]+)` \|", README, flags=re.MULTILINE)


def test_python_examples_run(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(example, {"__name__": "example"})
    examples = re.findall(r"```python\n(.*?)```", USAGE, flags=re.DOTALL)
    assert len(examples) == 3
    names = {"__name__": "example"}  # an example goes on from the one before
    for example in examples:
        exec(example, names)
    out = capsys.readouterr().out
    assert "Cost(params=" in out
    assert "\n8 (1, 0, 1)\n" in out
    page = (ROOT / "docs" / "freezing.md").read_text()
    example = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    exec(example, {"__name__": "example"})
    assert f"# {capsys.readouterr().out.strip()}\n" in example


def test_the_walk_through_a_new_space_runs_and_is_short(capsys):
    page = (ROOT / "docs" / "new-space.md").read_text()
    declaration, use, *more = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len([line for line in declaration.splitlines() if line.strip()]) <= 30
    exec(declaration + use, {"__name__": "example"})
    assert f"# {capsys.readouterr().out.strip()}\n" in use
    assert len(more) == 2
    for example in more:
        exec(example, {"__name__": "example"})
        for line in capsys.readouterr().out.splitlines():
            assert f"# {line}\n" in example


def test_every_command_parses():
    from benchmarks import benchmark, freezing, spaces
    from mnas.commands import evaluate, export, rank, report, search, study, train

    tools = {"train.py": train, "evaluate.py": evaluate, "export.py": export}
    tools |= {"freezing.py": freezing, "spaces.py": spaces, "benchmark.py": benchmark}
    tools |= {"study.py": study, "report.py": report, "search.py": search, "rank.py": rank}
    parsed = 0
    assert len(STEPS) == 6
    for line in [*BASH, *(f"python {step}" for step in STEPS)]:
        for command in line.split("&&"):
            words = shlex.split(command)
            if len(words) > 1 and words[1].startswith("tools/"):
                module = tools[words[1].removeprefix("tools/")]
                _, bound, _ = module.app.parse_args(
                    words[2:], exit_on_error=False, print_error=False
                )
                assert bound.arguments or not words[2:]
                parsed += 1
    assert parsed >= 6


def test_both_set_up_commands_make_their_environment_and_ci_runs_the_second():
    main, test = [line for line in BASH if line.startswith("python3 -m venv .venv")]
    assert main.endswith("python tools/study.py")
    assert test.endswith(".venv/bin/python -m pytest -q -n 2")
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_files_in_the_map_exist():
    page = (ROOT / "docs" / "changing.md").read_text()
    rows = re.findall(r"^\| (`[a-z/_.]+`.*)$", page, flags=re.MULTILINE)
    assert len(rows) >= 12
    for row in rows:
        room, *inside = re.findall(r"`([a-z/_.-]+(?:/|\.py|\.md|\.ipynb))`", row)
        assert (ROOT / room).exists(), room
        for name in inside:
            assert (ROOT / name).exists() or (
                (ROOT / room) if room.endswith("/") else (ROOT / room).parent
            ).joinpath(name).exists(), name


def test_every_page_is_linked_from_the_readme_and_links_lead_somewhere():
    linked = set(re.findall(r"\]\(([^)#:]+)\)", README.replace("\n", " ")))
    assert all((ROOT / name).exists() for name in linked)
    pages = {
        f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if ".ru." not in page.name
    }
    assert pages <= linked
    for page in pages:
        for name in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            assert (ROOT / "docs" / name).exists(), f"{page}: {name}"


def test_the_first_page_is_short_and_leads_to_both_languages():
    assert len(README.splitlines()) <= 150
    assert "(README.ru.md)" in README.splitlines()[1]
    assert "(README.md)" in (ROOT / "README.ru.md").read_text().splitlines()[1]


def test_the_russian_page_has_the_same_commands_and_its_links_lead_somewhere():
    page = (ROOT / "README.ru.md").read_text()
    for kind in (r"\| `(tools/[^`]+)` \|", r"```bash\n(.*?)\n```"):
        assert re.findall(kind, page, flags=re.DOTALL) == re.findall(kind, README, flags=re.DOTALL)
    names = re.findall(r"\]\(([^)#:]+)\)", page + (ROOT / "docs" / "ideas.ru.md").read_text())
    assert all((ROOT / name).exists() or (ROOT / "docs" / name).exists() for name in names)


def test_nothing_grows_beyond_what_one_can_hold_in_mind():
    for file in (
        file
        for room in ("mnas", "tools", "benchmarks", "tests")
        for file in (ROOT / room).rglob("*.py")
    ):
        text = file.read_text()
        assert len(text.splitlines()) <= 400, file
        assert text.startswith('"""'), f"{file} does not say what it is for"
    for file in (ROOT / "tools").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 10, file
