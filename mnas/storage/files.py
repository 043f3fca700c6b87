"""Files that others may have damaged, and that a kill must not tear: strict JSON, digests,
transactions and locks.

A `Folder` is a directory with a manifest: manifest.json lists the SHA-256 and the size of every
file that counts, and nothing is used before it has been compared. A write of several files is one
transaction:

    1. every new file is written beside the old one and synced
       (a kill here leaves pieces, which go next time);
    2. the manifest is replaced, and lists the new and the old version
       (both are right from now on);
    3. the files are replaced
       (each is the old or the new one, and is listed);

so that whatever a process that dies leaves behind can be told from damage, and be continued.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec
from filelock import FileLock, Timeout

from mnas.storage.strict_json import FolderError, parse

MANIFEST = "manifest.json"
LOCK = ".lock"
LOCK_SECONDS = (
    5.0  # to wait for a process that is about to end, as an orphan that saves its last step
)
PIECE = re.compile(r"\..+\.[0-9a-f]{16}\.mnas")  # what `_temporary` writes
LARGEST_TEXT = 64 << 20  # bytes; a million rows are less
LARGE = 1 << 18  # bytes


class NotYet(FolderError):
    """A file is listed for a write that was cut before it: the run had none until then."""


class OtherContent(FolderError):
    """A file holds what was not written there; `content`, if it is no larger than what was."""

    content: bytes | None = None


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file may hold."""

    sha256: str
    bytes: int

    @staticmethod
    def of(content: bytes) -> Version:
        return Version(hashlib.sha256(content).hexdigest(), len(content))


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """files: by name, the version that was written last and, if that write may have been cut, the
    one before it; None is no file."""

    format: str
    files: dict[str, list[Version | None]]


def open_regular(file: Path) -> BinaryIO:
    """A regular file to be read; a link to one will do. Raises FolderError for any other, which
    might never end (a pipe, a device), and OSError."""
    descriptor = os.open(
        file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FolderError(f"{file} is no regular file; restore it")
    return os.fdopen(descriptor, "rb")


def read(file: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file. Raises FolderError for one of more than so many bytes, and
    OSError."""
    with open_regular(file) as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise FolderError(f"{file} has more than the {largest:,} bytes expected; restore it")
    return content


def write_atomically(path: Path, content: bytes | str) -> None:
    """The file holds either what it held before or all of the content, whenever the machine
    stops."""
    _temporary(path, content.encode() if isinstance(content, str) else content).replace(path)
    _sync_directory(path.parent)


def _temporary(path: Path, content: bytes) -> Path:
    """The content on disk, beside the file that it is for, under a name that nobody can foresee;
    never through a link. Raises OSError, and leaves nothing then."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.mnas")
    flags = (
        os.O_WRONLY
        | os.O_CREAT
        | os.O_EXCL
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_BINARY", 0)
    )
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (
                    errno.EINVAL,
                    errno.ENOTSUP,
                    errno.ENOSYS,
                ):  # a file system without it
                    raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_directory(directory: Path) -> None:
    """Make a rename last, where the system lets a directory be synced; CIFS, some FUSE and Windows
    do not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Folder:
    """The files of a directory that are listed in its manifest.

    format: of the manifest, a name and a number such as "mnas-run-3". Raises FolderError where a
    file is missing, damaged or of another format, and OSError where it cannot be written. One
    process may write at a time (`lock`); others may read meanwhile."""

    def __init__(self, path: Path, format: str) -> None:
        self.path, self.format = Path(path), format
        self._there: dict[str, Version] | None = (
            None  # what the files hold, for the process that writes
        )

    def listed(self) -> set[str]:
        """The files of the manifest."""
        manifest = self._manifest()
        return set(manifest.files) if manifest else set()

    def names(self) -> set[str]:
        """The files that are listed and there."""
        return {name for name in self.listed() if (self.path / name).exists()}

    def unwritten(self) -> bool:
        """Whether the first write was cut after its manifest and before its first file."""
        manifest = self._manifest()
        return manifest is not None and all(
            None in versions for versions in manifest.files.values()
        )

    def read(self, name: str) -> bytes:
        """The content of a file, compared with the manifest."""
        manifest, content = self._manifest(), None
        while True:
            if manifest is None or name not in manifest.files:
                raise FolderError(f"{self._why_not(name)}")
            versions, file = manifest.files[name], self.path / name
            try:
                content = read(file, max(version.bytes for version in versions if version))
            except FileNotFoundError as error:
                if None not in versions:
                    raise FolderError(f"{file} is missing; restore it") from error
                raise NotYet(f"{self.path} does not hold {name} yet") from error
            except OSError as error:
                raise FolderError(f"cannot read {file} ({error.strerror}); restore it") from error
            except FolderError:
                content = None
            if content is not None and Version.of(content) in versions:
                return content
            before, manifest = manifest, self._manifest()
            if before == manifest:  # and no other process has written meanwhile
                error = OtherContent(
                    f"{file} is damaged or of another place, not what was written; restore it"
                )
                error.content = content
                raise error

    def write(
        self, contents: Mapping[str, bytes | str], remove: Iterable[str] = (), settle: bool = False
    ) -> None:
        """Replace some files, and remove others, in one transaction. What has not changed is not
        written again.

        settle: end with a manifest that allows nothing but the new files; without, the next write
        does that."""
        there = self.recover() if self._there is None else self._there
        there = {name: version for name, version in there.items() if (self.path / name).exists()}
        encoded = {name: c.encode() if isinstance(c, str) else c for name, c in contents.items()}
        temporaries: dict[str, Path] = {}
        try:
            versions = {
                name: self._version(name, content, temporaries) for name, content in encoded.items()
            }
            new = [name for name, version in versions.items() if there.get(name) != version]
            gone = [name for name in remove if (self.path / name).exists()]
            if not new and not gone and there and self._manifest_is(there):
                return
            kept = {name: version for name, version in there.items() if name not in gone}
            listed: dict[str, list[Version | None]] = {
                name: [version] for name, version in kept.items()
            }
            listed |= {name: [versions[name], kept.get(name)] for name in new}
            for name in new:
                temporaries[name] = temporaries.get(name) or _temporary(
                    self.path / name, encoded[name]
                )
            self._write_manifest(listed)
            for name in new:
                temporaries.pop(name).replace(self.path / name)
                kept[name] = versions[name]
            for name in gone:
                (self.path / name).unlink(missing_ok=True)
        except BaseException:
            self._there = None  # looked at again before the next write
            raise
        finally:
            for temporary in temporaries.values():
                temporary.unlink(missing_ok=True)
        # The new names are not synced: if a power cut takes them back, the manifest lists what is
        # there then.
        self._there = kept
        if settle:
            self._write_manifest({name: [version] for name, version in kept.items()})

    def _version(self, name: str, content: bytes, temporaries: dict[str, Path]) -> Version:
        """What a file is to hold. A large one, which is a checkpoint and has surely changed, is
        written meanwhile: the disk and the digest take about as long as each other."""
        if len(content) < LARGE:
            return Version.of(content)
        with ThreadPoolExecutor(1) as other:
            version = other.submit(Version.of, content)
            temporaries[name] = _temporary(self.path / name, content)
            return version.result()

    def _write_manifest(self, listed: dict[str, list[Version | None]]) -> None:
        manifest = msgspec.json.encode(Manifest(self.format, listed), order="deterministic")
        write_atomically(self.path / MANIFEST, msgspec.json.format(manifest, indent=2) + b"\n")

    def _manifest_is(self, there: dict[str, Version]) -> bool:
        manifest = self._manifest()
        return manifest is not None and manifest.files == {
            name: [version] for name, version in there.items()
        }

    def recover(self) -> dict[str, Version]:
        """Before a process goes on with what another one left: remove pieces of its writes, and see
        which version each file is. Raises FolderError if one is neither. A listed file that is not
        there counts as not written."""
        self._there = {}
        if not self.path.is_dir():
            return self._there
        for piece in self.path.iterdir():
            if PIECE.fullmatch(piece.name):
                piece.unlink(missing_ok=True)
        manifest = self._manifest()
        for name, versions in manifest.files.items() if manifest else ():
            if (self.path / name).exists() or None not in versions:
                self._there[name] = Version.of(self.read(name))
        return self._there

    @contextlib.contextmanager
    def lock(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Be the one process that writes, for as long as the block lasts; the system ends it with
        the process.

        May be entered again in the same process. Raises FolderError after so many seconds in which
        another has it."""
        lock = FileLock(self.path.resolve() / LOCK, is_singleton=True)
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise FolderError(
                f"{self.path} is in use by another process; wait until it ends, or choose another "
                "directory"
            ) from error
        try:
            yield
        finally:
            if lock.lock_counter == 1:
                (self.path / LOCK).unlink(
                    missing_ok=True
                )  # while it is held: who waits for it looks again
                self._there = None
            lock.release()

    def _manifest(self) -> Manifest | None:
        """None if there is none, as in a new directory."""
        file = self.path / MANIFEST
        try:
            content = read(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise FolderError(f"cannot read {file} ({error.strerror})") from error
        manifest = parse(content, Manifest, file)
        if manifest.format != self.format:
            raise FolderError(
                f"{file} is of format {manifest.format!r}, not {self.format}; "
                f"{self._advice(manifest)}"
            )
        if not all(v and v[0] for v in manifest.files.values()) or any(
            Path(n).name != n for n in manifest.files
        ):
            raise FolderError(f"{file} is damaged (names or versions); restore it")
        return manifest

    def _advice(self, manifest: Manifest) -> str:
        (ours, number), (theirs, other) = (
            f.rpartition("-")[::2] for f in (self.format, manifest.format)
        )
        if ours != theirs or not other.isdecimal():
            return "it belongs to something else"
        return (
            "install the newer mnas that wrote it"
            if int(other) > int(number)
            else "an older mnas wrote it"
        )

    def _why_not(self, name: str) -> str:
        if (self.path / name).exists():
            return (
                f"{self.path / name} is not listed in {MANIFEST}; an older mnas or another "
                "program wrote it"
            )
        return f"{self.path} does not hold {name}"
