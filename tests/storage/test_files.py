"""Files of a folder: strict JSON, digests, transactions that any kill leaves whole, locks that the
system releases."""

import json
import math
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnas.storage import files, strict_json
from mnas.storage.files import Folder, NotYet, OtherContent
from mnas.storage.strict_json import FolderError


def folder(path, **contents):
    path.mkdir(exist_ok=True)
    made = Folder(path, "mnas-test-1")
    made.write(contents)
    return made


def no_constant(word):
    raise AssertionError(f"{word} is not JSON")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_json_is_strict_and_what_is_finite_comes_back(value):
    def expected(v):
        if isinstance(v, list):
            return [expected(item) for item in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    assert json.loads(strict_json.dumps(value), parse_constant=no_constant) == expected(value)


def test_numbers_of_numpy_are_written_and_other_objects_are_refused():
    row = {
        "a": np.float64(1.5),
        "b": np.int64(3),
        "c": np.bool_(True),
        "d": np.float32("nan"),
        "e": (1, 2),
    }
    assert json.loads(strict_json.dumps(row)) == {
        "a": 1.5,
        "b": 3,
        "c": True,
        "d": None,
        "e": [1, 2],
    }
    with pytest.raises(ValueError, match="a set cannot be written as JSON"):
        strict_json.dumps({"a": {1}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"NaN",
        b'{"a": NaN}',
        b'{"a": 1}x',
        b"\xff\xfe",
        b"\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_strict_json_object_is_refused_in_one_sentence(content):
    with pytest.raises(FolderError, match=r"^f is damaged \(.*\); restore it$"):
        strict_json.parse(content, dict, "f")


def test_only_regular_files_of_a_known_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "real").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert files.read(tmp_path / "link") == b"abc"
    for name in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises((FolderError, IsADirectoryError), match=r"is no regular file|directory"):
            files.read(name)
    with pytest.raises(FolderError, match="real has more than the 2 bytes expected"):
        files.read(tmp_path / "real", 2)


def test_every_change_of_a_file_is_noticed(tmp_path):
    made = folder(tmp_path / "f", a=b"some content", b=b"other")
    whole = (tmp_path / "f" / "a").read_bytes()
    variants = [
        bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :])
        for i in range(12)
        for bit in range(8)
    ]
    for content in [*variants, b"", whole[:-1], whole + b"\n", b"other", b"x" * 10**6]:
        (tmp_path / "f" / "a").write_bytes(content)
        with pytest.raises(OtherContent, match="a is damaged or of another place"):
            made.read("a")
    (tmp_path / "f" / "a").unlink()
    made.write({"a": b"some content"})
    assert made.read("a") == whole
    made.write({"b": b"new"})  # the file is on disk now, and its absence no leftover of a kill
    (tmp_path / "f" / "a").unlink()
    with pytest.raises(FolderError, match="a is missing; restore it"):
        made.read("a")
    os.mkfifo(tmp_path / "f" / "a")
    with pytest.raises(FolderError, match="a is damaged or of another place"):
        made.read("a")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"", "is damaged"),
        (b"{}", "is damaged .*missing required field `format`"),
        (b'{"format": "mnas-test-1", "files": {"a": []}}', r"is damaged \(names or versions\)"),
        (
            b'{"format": "mnas-test-1", "files": {"../a": [{"sha256": "", "bytes": 1}]}}',
            r"is damaged \(names",
        ),
        (b'{"format": "mnas-test-1", "files": {}}', "a is not listed in manifest.json"),
        (
            b'{"format": "mnas-test-2", "files": {}}',
            "'mnas-test-2', not mnas-test-1; install the newer mnas",
        ),
        (b'{"format": "mnas-test-0", "files": {}}', "an older mnas wrote it"),
        (b'{"format": "other-9", "files": {}}', "it belongs to something else"),
        (None, "a is not listed in manifest.json; an older mnas or another program wrote it"),
    ],
)
def test_a_manifest_that_is_not_ours_says_what_it_is(manifest, message, tmp_path):
    made = folder(tmp_path / "f", a=b"1")
    (tmp_path / "f" / "manifest.json").unlink()
    if manifest is not None:
        (tmp_path / "f" / "manifest.json").write_bytes(manifest)
    with pytest.raises(FolderError, match=message):
        made.read("a")


class Killed(BaseException):
    """In the place of SIGKILL: nothing is tidied after it, because every later step of this process
    fails, too."""


STEPS = ("open", "fsync", "replace", "unlink")


def killed_at(step, monkeypatch, act):
    """Run `act` until before its step number `step` that changes something on disk; whether it got
    that far."""
    count = 0

    def guarded(real, changes=lambda *_: True):
        def call(*arguments, **options):
            nonlocal count
            if changes(*arguments):
                count += 1
                if count > step:
                    raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", guarded(os.open, lambda _, flags, *__: flags & os.O_CREAT))
        patch.setattr(os, "fsync", guarded(os.fsync))
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, guarded(getattr(Path, name)))
        try:
            act()
        except Killed:
            return False
    return True


def test_a_write_that_is_killed_at_any_step_leaves_old_or_new_files_and_is_continued(
    tmp_path, monkeypatch
):
    old, new = (
        {"a": b"old a", "b": b"old b", "gone": b"g"},
        {"a": b"new a", "b": b"new b", "c": b"new c"},
    )
    step, done, seen = 0, False, set()
    while not done:
        path = tmp_path / str(step)
        folder(path, **old)
        done = killed_at(
            step,
            monkeypatch,
            lambda path=path: Folder(path, "mnas-test-1").write(new, remove=["gone"]),
        )
        found = Folder(path, "mnas-test-1")
        for name in ("a", "b"):
            assert found.read(name) in (old[name], new[name])  # nothing is taken for damage
        seen.add(tuple(found.read(name) == new[name] for name in ("a", "b")))
        if "c" in found.listed() and not (path / "c").exists():
            with pytest.raises(NotYet, match="does not hold c yet"):
                found.read("c")
        found.recover()
        found.write(new, remove=["gone"])
        assert {name: found.read(name) for name in found.names()} == new
        assert {p.name for p in path.iterdir()} == {*new, "manifest.json"}
        step += 1
    assert step > 10
    assert seen == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("size", [1, files.LARGE])
def test_a_failed_write_leaves_the_old_files_and_no_pieces(size, tmp_path, monkeypatch):
    made = folder(tmp_path / "f", a=b"old", b=b"old")
    calls = []

    def full_disk(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        made.write({"a": b"n" * size, "b": b"new"})
    assert (made.read("a"), made.read("b")) == (b"old", b"old")
    assert {p.name for p in (tmp_path / "f").iterdir()} == {"a", "b", "manifest.json"}
    monkeypatch.undo()
    made.write({"a": b"new"})
    assert made.read("a") == b"new"


@pytest.mark.parametrize("size", [1, files.LARGE])
def test_what_has_not_changed_is_not_written_again(size, tmp_path):
    made = folder(tmp_path / "f", a=b"1" * size, b=b"2")
    before = (tmp_path / "f" / "a").stat().st_mtime_ns
    made.write({"a": b"1" * size, "b": b"3"})
    assert (tmp_path / "f" / "a").stat().st_mtime_ns == before
    assert made.read("b") == b"3"
    assert {p.name for p in made.path.iterdir()} == {"a", "b", "manifest.json"}


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_directory_that_cannot_be_synced_does_not_fail_a_write(call, tmp_path, monkeypatch):
    real = getattr(os, call)

    def refuse(where, *arguments, **options):
        directory = (
            stat.S_ISDIR(os.fstat(where).st_mode)
            if isinstance(where, int)
            else Path(where).is_dir()
        )
        if directory:
            raise OSError(22, "Invalid argument")
        return real(where, *arguments, **options)

    monkeypatch.setattr(os, call, refuse)
    assert folder(tmp_path / "f", a=b"1").read("a") == b"1"


def test_pieces_have_names_that_nobody_foresees_and_links_are_not_followed(tmp_path, monkeypatch):
    made = folder(tmp_path / "f", a=b"1")
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "ab" * n)
    (tmp_path / "f" / f".a.{'ab' * 8}.mnas").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        made.write({"a": b"2"})
    assert (tmp_path / "victim").read_text() == "mine"
    assert made.read("a") == b"1"
    assert len({files.secrets.token_hex(8) for _ in range(2)}) == 1
    monkeypatch.undo()
    assert len({files.secrets.token_hex(8) for _ in range(20)}) == 20


def test_tidying_removes_only_pieces_of_ours(tmp_path):
    made = folder(tmp_path / "f", **{"config.json": b"1"})
    others = [
        ".config.json.swp",
        ".config.json.123",
        "x.0123456789abcdef.mnas",
        ".config.json.0123456789abcdef.mnas~",
    ]
    for name in [
        *others,
        ".config.json.0123456789abcdef.mnas",
        ".manifest.json.0123456789abcdef.mnas",
    ]:
        (tmp_path / "f" / name).write_text("x")
    made.recover()
    assert {p.name for p in (tmp_path / "f").iterdir()} == {"config.json", "manifest.json", *others}


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        folder(tmp_path / "f", a=b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f" / "a").stat().st_mode) == 0o640


HOLD = """
import sys, time
from pathlib import Path
from mnas.storage.files import Folder
with Folder(Path(sys.argv[1]), "mnas-test-1").lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_has_the_lock_and_the_system_takes_it_back(tmp_path):
    made = folder(tmp_path / "f")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(made.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    begun = time.monotonic()
    with (
        pytest.raises(FolderError, match="f is in use by another process; wait until it ends"),
        made.lock(0.3),
    ):
        pass
    assert time.monotonic() - begun < 5
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with made.lock(5), made.lock(5):  # again in the same process
        assert (made.path / ".lock").exists()
    assert not (made.path / ".lock").exists()


def _count(path, rounds):
    for _ in range(rounds):
        with Folder(Path(path), "mnas-test-1").lock(60):
            file = Path(path) / "count"
            number = int(file.read_text())
            time.sleep(0.001)
            file.write_text(str(number + 1))


def test_locks_exclude_each_other_though_their_file_goes_in_between(tmp_path):
    folder(tmp_path / "f")
    (tmp_path / "f" / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count, args=(tmp_path / "f", 30)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "f" / "count").read_text() == "120"


WRITE = """
import sys
from pathlib import Path
from mnas.storage.files import Folder
folder, number = Folder(Path(sys.argv[1]), "mnas-test-1"), 0
print("begun", flush=True)
while True:
    number += 1
    folder.write({"a": str(number) * 1000, "b": str(number) * 2000})
"""


def test_a_reader_beside_a_writer_never_takes_a_write_for_damage(tmp_path):
    made = folder(tmp_path / "f", a="0", b="0")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(made.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout.readline() == "begun\n"
        contents = {bytes(made.read("b")) for _ in range(3000)}
    finally:
        writer.kill()
        writer.communicate()
    assert len(contents) > 3
    assert all(re.fullmatch(rb"0|(\d+?)\1{1999}", content) for content in contents)
