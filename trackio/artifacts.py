"""`Artifact`: a named, versioned set of files and references. Collects; hands its files over; waits when asked to.

The daemon gives the version, once it has the files and so knows whether this content was there before. Until then
`log_artifact()` has long returned: whoever reads `version` waits for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trackio import surface, voice
from trackio.border import raises_only
from trackio.configuration import as_mapping
from trackio.staging import sha256_of
from trackio.values import Unstorable, clean_text, is_given, is_mapping, plain_config, short_repr, text_of

if TYPE_CHECKING:
    from trackio.stream import Stream

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_VERSION = re.compile(r"v\d+(-[0-9a-f]{8})?\Z")
_MAX_OBJECTS = 10_000
_MOST_PROBLEMS = 10
"""files that are named one by one when they are missing"""
_CHARS_A_PART = 128 << 10
"""of references in one record of the stream, which holds 1 MiB: at most 4 bytes a character, and their keys"""
_SIGNED = re.compile(r"[?&](X-Amz-Signature|X-Goog-Signature|Signature|sig|token|access_token)=", re.IGNORECASE)


def checked_name(name: Any) -> str:
    """An artifact's name. Raises ValueError for what is none."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ValueError(f"Artifact name {str(name)[:140]!r} is not of 1 to 128 letters, digits, '.', '_' and '-'.")
    return name


def checked_aliases(aliases: Any) -> list[str]:
    """Aliases as a list. Raises ValueError."""
    if aliases is None:
        return []
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        raise ValueError(f"aliases must be a list of strings, not a {type(aliases).__name__}.")
    found = [checked_name(alias) for alias in aliases]
    for alias in found:
        if _VERSION.match(alias):
            raise ValueError(f"Alias {alias!r} is reserved for version pointers (vN); choose another.")
    return found


def checked_path(path: Any) -> str:
    """A path inside an artifact: relative, with no way out. Raises ValueError."""
    text = os.fspath(path)
    parts = text.split("/") if isinstance(text, str) else []
    if not parts or any(part in ("", ".", "..") for part in parts) or "\0" in text or "\\" in text or len(text) > 4096:
        raise ValueError(
            f"Invalid artifact path {str(text)[:140]!r}: it must be relative, without '..' and backslashes."
        )
    return clean_path(text)


def clean_path(path: str) -> str:
    """A path on this host as one in an artifact: what is not UTF-8 is written as in URLs, `caf%E9.txt`, and so is a
    backslash, which separates folders elsewhere."""
    odd = (c for c in {*path} if c == "\\" or 0xD800 <= ord(c) < 0xE000)
    return str.__str__(path).translate({ord(c): f"%{ord(c) & 0xFF:02X}" for c in odd})


_handed_over: dict[tuple[str, str, str], tuple[str, str, int]] = {}
"""What this process logged last under a name, by data folder, project and name: data folder, stream and number."""


class Artifact:
    """Files and references under a name, each content a version of its own: `v0`, `v1` and so on.

    `add_file`, `add_dir` and `add_reference` collect, `trackio.log_artifact` hands over. `version`, `aliases`, `size`,
    `manifest` and `digest` wait until the daemon has the files, at most as long as `wait()` does.
    Raises ValueError for a name that is none.
    """

    @raises_only(ValueError)
    def __init__(
        self, name: str, type: str = "unspecified", description: str | None = None, metadata: Any = None
    ) -> None:
        self.name = checked_name(name)
        self.type = text_of(type)
        self.description = None if description is None else text_of(description)
        self.metadata: dict[str, Any] = _metadata(metadata)
        self._files: list[tuple[str, str]] = []
        self._references: list[dict[str, Any]] = []
        self._lost: list[dict[str, Any]] = []
        """folders that could not be listed"""
        self._taken: set[str] = set()
        """paths of files and references"""
        self._folders: dict[str, str] = {}
        """every folder above these, and one of the paths below it"""
        self._at: tuple[str, str, int] | None = None
        """where it was logged: data folder, stream and number"""
        self._found: Any = None
        """`library.Version`, once it is known"""

    # -- collecting ---------------------------------------------------------------------------------------------

    @raises_only(ValueError, RuntimeError)
    def add_file(self, local_path: Any, name: Any = None, **unused: Any) -> None:
        """Adds a file, under its own name or another. Raises ValueError if it is none, or the name is taken."""
        path = os.path.realpath(os.fsdecode(local_path))
        if not os.path.isfile(path):
            raise ValueError(f"Not a regular file: {clean_text(path)}")
        self._add(path, checked_path(name if name is not None else clean_path(os.path.basename(path))))

    @raises_only(ValueError, RuntimeError)
    def add_dir(self, local_dir: Any, name: Any = None, **unused: Any) -> None:
        """Adds every regular file below a folder; links are left out. Raises ValueError if it is none."""
        root = os.path.realpath(os.fsdecode(local_dir))
        if not os.path.isdir(root):
            raise ValueError(f"Not a directory: {clean_text(root)}")
        prefix = checked_path(str(name).rstrip("/")) + "/" if name else ""
        for path, relative in _files_below(root, follow_links=False, on_error=self._note_unlisted):
            self._add(path, checked_path(prefix + clean_path(relative)))

    @raises_only(ValueError, RuntimeError)
    def add_reference(self, uri: str, name: Any = None, checksum: bool = True, max_objects: int | None = None) -> None:
        """Adds an address without its bytes. What `file://` addresses name is looked at, a folder file by file (at most
        `max_objects`, 10,000 without); others are recorded as they are, and their address stands for their content.
        Raises ValueError for what is no address or names nothing."""
        self._check_open()
        uri = text_of(uri)
        parts = urlsplit(uri)
        if not parts.scheme or not (parts.netloc or parts.path):
            raise ValueError(f"Invalid reference URI {uri[:200]!r}: it has no scheme.")
        if _SIGNED.search(uri):
            voice.warn_once("signed", "a reference looks like a signed address; it is recorded whole, secret included.")
        if parts.scheme != "file":
            self._refer(checked_path(name or parts.path.rstrip("/").rpartition("/")[2] or parts.netloc), uri, uri, 0)
            return
        for path, relative in _local(parts.path, max_objects or _MAX_OBJECTS):
            inside = "/".join(filter(None, [str(name).rstrip("/") if name else "", relative])) or os.path.basename(path)
            digest = sha256_of(path) if checksum else f"file://{path}"
            self._refer(checked_path(inside), f"file://{path}", digest, os.stat(path).st_size)

    def _add(self, path: str, inside: str) -> None:
        self._check_open()
        self._take_path(inside)
        self._files.append((path, inside))

    def _refer(self, inside: str, uri: str, digest: str, size: int) -> None:
        self._take_path(inside)
        self._references.append(
            {"path": inside, "ref": clean_text(uri), "digest": clean_text(str(digest)), "size": size}
        )

    def _check_open(self) -> None:
        if self._at is not None or self._found is not None:
            raise RuntimeError("Artifact has already been logged or fetched; make a new Artifact to log again.")

    def _note_unlisted(self, folder: str, error: OSError) -> None:
        self._lost.append({"path": clean_path(folder), "incomplete": f"the folder cannot be listed ({error.strerror})"})

    def _take_path(self, inside: str) -> None:
        """Reserve a path in the artifact. Raises ValueError if it is taken, or is both a file and a folder.

        The work for a path does not grow with the number of paths before it: a folder that is known has known folders
        above it, none of which is a file.
        """
        collides = inside if inside in self._taken else self._folders.get(inside)
        folders = []
        folder = inside.rpartition("/")[0]
        while folder and collides is None and folder not in self._folders:
            collides = folder if folder in self._taken else None
            folders.append(folder)
            folder = folder.rpartition("/")[0]
        if collides is not None:
            raise ValueError(f"Artifact path {inside!r} collides with {collides!r}.")
        self._taken.add(inside)
        for folder in folders:
            self._folders[folder] = inside

    # -- handing over ---------------------------------------------------------------------------------------------

    def _hand_over(
        self, stream: Stream, data: str, project: str, aliases: list[str], *, overwrite: bool
    ) -> tuple[list[str], int]:
        """Puts its files and itself into the stream; returns sentences for files that could not be taken, and their
        number."""
        number = stream.next_artifact()
        taken = stream.staging.take_all([(path, {"artifact": number, "path": inside}) for path, inside in self._files])
        lost = list(self._lost)
        for (_, inside), staged in zip(self._files, taken, strict=True):
            if isinstance(staged, Unstorable):
                lost.append({"path": inside, "incomplete": clean_text(str(staged))})
        problems = [f"{each['path']!r} of artifact {self.name!r} is missing: {each['incomplete']}." for each in lost]
        if (more := len(lost) - _MOST_PROBLEMS) > 0:
            problems[_MOST_PROBLEMS:] = [f"{more:,} more files of artifact {self.name!r} are missing."]
        facts = {
            "type": self.type, "description": self.description, "metadata": plain_config(self.metadata),
            "aliases": aliases, "files": len(self._files) - sum(isinstance(each, Unstorable) for each in taken),
            "overwrite": overwrite,
        }  # fmt: skip
        parts = list(_parts([*self._references, *lost]))
        is_told = True
        if len(parts) <= 1:
            facts |= {"references": self._references, "lost": lost}
        else:
            facts["parts"] = len(parts)
            about = ({"of": number, "entries": entries} for entries in parts)
            is_told = all(stream.note_artifact(stream.next_artifact(), "part", self.name, part) for part in about)
        if is_told and stream.note_artifact(number, "output", self.name, facts):
            self._at = _handed_over[data, project, self.name] = (data, stream.id, number)
        else:
            problems.append(f"artifact {self.name!r} found no room and was not logged.")
        return problems, len(lost)

    # -- reading ----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Artifact:
        """Waits until the daemon has its files, and so its version: `timeout` seconds, else as long as that goes on.
        Raises RuntimeError if it was not logged or not all of it was kept, TimeoutError if it took longer."""
        if problem := self._known(timeout).problem:
            raise RuntimeError(problem)
        return self

    def _known(self, timeout: float | None = None) -> Any:
        if self._found is None:
            if self._at is None:
                raise RuntimeError(f"Artifact {self.name!r} was not logged yet; call log_artifact first.")
            self._found = surface.daemons("library").awaited(*self._at, timeout)
        return self._found

    @property
    def version(self) -> str | None:
        """`"v3"`; None if it was not logged."""
        return None if self._is_new else f"v{self._known().version}"

    @property
    def aliases(self) -> tuple[str, ...]:
        """What else this version is called, `latest` among them."""
        return () if self._is_new else self._known().aliases

    @property
    def size(self) -> int | None:
        """Bytes of all files and of references whose size is known."""
        return None if self._is_new else self._known().size

    @property
    def manifest(self) -> list[dict[str, Any]] | None:
        """A map for each file (`path`, `digest`, `size`) and reference (`ref`); `incomplete` where one is missing."""
        return None if self._is_new else [dict(entry) for entry in self._known().manifest]

    @property
    def digest(self) -> str | None:
        """SHA-256 over its paths and their content."""
        return None if self._is_new else self._known().digest

    manifest_digest = digest

    @property
    def project(self) -> str | None:
        return None if self._is_new else self._known().project

    @property
    def qualified_name(self) -> str:
        """`project/name:v3`. Raises RuntimeError if it was not logged."""
        found = self._known()
        return f"{found.project}/{self.name}:v{found.version}"

    @property
    def _is_new(self) -> bool:
        return self._at is None and self._found is None

    def download(self, root: Any = None) -> str:
        """Puts its files below `root` (else `artifacts/<name>:v<n>` here), by clone, link or copy, and fetches `file://`
        references; returns that folder. Raises RuntimeError if a file is missing or changed."""
        folder: str = surface.daemons("library").download(self._known(), root)
        return folder

    def get_entry_uri(self, name: str) -> str | None:
        """The address of a reference in it; None for a file. Raises KeyError if there is nothing of that path."""
        for entry in self._known().manifest:
            if entry["path"] == name:
                return None if "ref" not in entry else str(entry["ref"])
        raise KeyError(name)

    def references(self) -> list[dict[str, Any]]:
        """The entries that are addresses."""
        return [dict(entry) for entry in self._known().manifest if "ref" in entry]

    def __repr__(self) -> str:
        return f"<Artifact {self.name!r} of type {self.type!r}>"


def _metadata(given: Any) -> dict[Any, Any]:
    if not is_given(given):
        return {}
    return as_mapping(given) if is_mapping(given) else dict(given)


def made_of(artifact_or_path: Any, name: str | None, type_: str | None) -> Artifact:
    """The artifact, or one made of a file or folder. Raises ValueError."""
    if isinstance(artifact_or_path, Artifact):
        if name is not None or type_ is not None:
            raise ValueError("name/type can only be passed when logging a path; set them on the Artifact instead.")
        return artifact_or_path
    path = os.fsdecode(artifact_or_path)
    base = os.path.basename(os.path.abspath(path))
    artifact = Artifact(name or re.sub(r"[^A-Za-z0-9._-]", "_", base)[:128], type_ or "unspecified")
    if os.path.isdir(path):
        artifact.add_dir(path)
    else:
        artifact.add_file(path)
    return artifact


def _parts(entries: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield entries in lists that each fit into a record of the stream."""
    part: list[dict[str, Any]] = []
    chars = 0
    for entry in entries:
        chars += sum(len(str(value)) for value in entry.values())
        if part and chars > _CHARS_A_PART:
            yield part
            part, chars = [], 0
        part.append(entry)
    if part:
        yield part


def _local(path: str, most: int) -> list[tuple[str, str]]:
    """(path, path below the folder or nothing) of what a local address names. Raises ValueError."""
    from urllib.parse import unquote

    path = os.path.realpath(unquote(path))
    if os.path.isfile(path):
        return [(path, "")]
    found: list[tuple[str, str]] = []

    def refuse(_: str, error: OSError) -> None:
        raise ValueError(f"Reference {path!r} cannot be listed whole ({error.strerror}).")

    for each in _files_below(path, follow_links=True, on_error=refuse):
        found.append(each)
        if len(found) > most:
            raise ValueError(f"Reference {path!r} has more than {most:,} files; pass max_objects.")
    if not found:
        raise ValueError(f"Reference {path!r} matched no file.")
    return found


def _files_below(
    root: str, *, follow_links: bool, on_error: Callable[[str, OSError], None]
) -> Iterator[tuple[str, str]]:
    """Yield (path, path below `root`) of each regular file, those of a folder before its folders, each in order.

    Links to folders are left out; links to files too, unless they are to be followed. A folder that cannot be listed
    is given to `on_error`.
    """
    waiting = [""]
    while waiting:
        below = waiting.pop()
        path = os.path.join(root, below) if below else root
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            on_error(below or os.path.basename(root), error)
            continue
        folders = []
        for entry in found:
            relative = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(relative)
            elif _is_file(entry, follow_links=follow_links):
                yield entry.path, relative
        waiting += reversed(folders)


def _is_file(entry: os.DirEntry[str], *, follow_links: bool) -> bool:
    try:
        return entry.is_file(follow_symlinks=follow_links)
    except OSError:
        return False  # a link that leads in a circle


def used(data: str, project: str, artifact_or_name: Any, type_: str | None) -> Artifact:
    """A logged artifact by `name`, `name:alias`, `name:v3` or `project/name:...`; what this process has logged under
    that name is waited for. A line says what of it is incomplete. Raises ValueError if there is none, or it is of
    another type, TimeoutError as `wait()`."""
    if isinstance(artifact_or_name, Artifact):
        artifact_or_name._known()
        return artifact_or_name
    library = surface.daemons("library")
    its_project, name, _ = library.parted(text_of(artifact_or_name), project)
    last = _handed_over.get((data, its_project, name))
    logged = library.awaited(*last, None) if last is not None else None
    found = library.find(data, project, text_of(artifact_or_name))
    for version in filter(None, (logged, found)):
        if version.problem:
            voice.warn_once(f"use {version.project} {version.problem}", version.problem)
    if type_ is not None and found.type != text_of(type_):
        raise ValueError(f"Artifact {short_repr(artifact_or_name)} has type {found.type!r}, not {short_repr(type_)}.")
    artifact = Artifact(found.name, found.type, found.description, found.metadata)
    artifact._found = found
    return artifact


def use_facts(artifact: Artifact) -> Mapping[str, Any]:
    """What the record of its use says."""
    found = artifact._known()
    return {"project": found.project, "version": found.version, "digest": found.digest}
