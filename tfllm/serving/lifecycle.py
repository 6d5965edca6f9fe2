"""Models and their versions: discovered on the disk, loaded, served, unloaded.

TF Serving's availability-preserving order: a new version is loaded before the old one goes, and
the old one stays when the new one cannot be loaded. What is loaded is compared with what lies on
the disk: a version whose files are others now is loaded again, in the same order. A version is
unloaded when its last request is answered. A new list of models is loaded beside the old one and
takes its place in one step, or not at all. All state belongs to the event loop; threads look at
the disk, load and unload.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from tfllm.serving import versions
from tfllm.serving.batcher import Batcher
from tfllm.serving.schema import Code, ModelEntry, RequestError, invalid
from tfllm.serving.servable import Servable, cause, code_of
from tfllm.serving.versions import Fingerprint

log = logging.getLogger("tfllm.serving")

MAX_ENDED_VERSIONS = 8  # versions whose end is still reported
DISK_THREADS = 4
UNLOAD_THREADS = 2
SETTLE_POLL_SECONDS = 0.05  # between looks while somebody waits for a new list of models

T = TypeVar("T")
Load = Callable[[str, int, Path], Servable]
"""Loads a version: model, number, directory."""


class State(IntEnum):
    """ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(eq=False)
class Version:
    """One version of a model, from the first sight of its directory to its end."""

    model: str
    number: int
    path: Path
    state: State = State.START
    code: Code = Code.OK
    message: str = ""
    servable: Any = None
    seen: Fingerprint | None = None
    seen_at: float = 0.0
    unwanted: bool = False
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    batchers: dict[str, Batcher] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it could not be loaded."""
        return self.state == State.END and self.code != Code.OK

    def look(self, seen: Fingerprint, settle_seconds: float) -> bool:
        """Note what is on the disk.

        Args:
            seen: What is in the version's directory.
            settle_seconds: How long it must not change.

        Returns:
            Whether nobody is writing there any more.
        """
        if seen != self.seen:
            self.seen, self.seen_at, self.path = seen, time.monotonic(), seen.directory
        if seen.complete and seen.quiet_since(settle_seconds):
            return True
        return time.monotonic() - self.seen_at >= settle_seconds


@dataclass(eq=False)
class Model:
    """A configured model: its entry and all its versions by number.

    `replacements` load in place of a version of the same number, whose files have changed.
    `predecessor` is set while the model is not yet served: loaded versions are taken from there.
    """

    entry: ModelEntry
    predecessor: Model | None = None
    staged: bool = False
    versions: dict[int, Version] = field(default_factory=dict)
    replacements: dict[int, Version] = field(default_factory=dict)
    selected: list[int] = field(default_factory=list)
    removed: bool = False
    problem: str = ""
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def available(self) -> list[int]:
        """Return the numbers of the available versions, ascending."""
        return sorted(n for n, v in self.versions.items() if v.state == State.AVAILABLE)

    def settled(self) -> bool:
        """Return whether every selected version is available or has failed, or there is none."""
        if not self.selected:
            return bool(self.problem)
        known = [self.versions.get(number) for number in self.selected]
        return all(v and (v.state == State.AVAILABLE or v.failed) for v in known)


class Models:
    """All models of a server. `apply` and `change` say which, `poll` brings the disk's news.

    Args:
        load: Makes a servable of name, number and path; called in a thread.
        warm: Runs a servable's warm-up requests; called in a thread. What it raises fails the load.
        settle_seconds: A version is loaded when nothing was written there for so long.
        load_threads: Models that load at once; versions of one model load one after the other.
        changed: Called when the state of a version has changed.
    """

    def __init__(
        self,
        load: Load,
        settle_seconds: float = 1.0,
        changed: Callable[[], None] = lambda: None,
        warm: Callable[[Servable], object] = lambda servable: None,
        load_threads: int = 4,
    ):
        self._load = load
        self._warm = warm
        self._settle_seconds = settle_seconds
        self._changed = changed
        self._disk = ThreadPoolExecutor(DISK_THREADS, "disk")
        self._loader = ThreadPoolExecutor(load_threads, "loader")
        self._unloader = ThreadPoolExecutor(UNLOAD_THREADS, "unloader")
        self._loads: set[asyncio.Task] = set()
        self._unloads: set[asyncio.Task] = set()
        self._polling = asyncio.Lock()
        self._changing = asyncio.Lock()
        self._cancelling = self._closed = False
        self.models: dict[str, Model] = {}

    @property
    def ready(self) -> bool:
        """Whether every configured model has an available version."""
        return bool(self.models) and all(model.available() for model in self.models.values())

    def apply(self, entries: list[ModelEntry]) -> None:
        """Set the first list of models: each is served as soon as it is loaded."""
        self.models = {entry.name: Model(entry) for entry in entries}

    async def change(self, entries: list[ModelEntry]) -> None:
        """Replace the list of models: all of it at once, when all of it can be served.

        Raises:
            RequestError: A model has no version that can be loaded, or a label names a version
                that does not answer. Everything is as it was.
        """
        async with self._changing:
            staged = [Model(e, predecessor=self.models.get(e.name), staged=True) for e in entries]
            try:
                await self._settle(staged)
                for model in staged:
                    _check(model)
            except BaseException:
                self._discard(staged)
                raise
            self._commit(staged)

    async def snapshot(self, entries: list[ModelEntry]) -> list[Any]:
        """Return what is on the disk for these models; equal while nothing changes there."""
        return [await in_thread(self._disk, _read, entry) for entry in entries]

    @contextmanager
    def use(
        self, name: str, number: int | None = None, label: str | None = None
    ) -> Iterator[Version]:
        """Hold an available version in memory until the block ends.

        Args:
            name: The model's name.
            number: The version; None: the one of `label`, or the newest.
            label: A label of the model's configuration.

        Raises:
            RequestError: NOT_FOUND, there is no such version; INVALID_ARGUMENT, there is no name,
                or no such label.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        version = self._find(name, number, label)
        version.users += 1
        try:
            yield version
        finally:
            version.users -= 1
            if not version.users:
                version.unused.set()

    def statuses(self, name: str, number: int | None = None) -> list[Version]:
        """Return the versions of a model, newest first.

        Args:
            name: The model's name.
            number: The one version to return; None: all.

        Raises:
            RequestError: NOT_FOUND, there is no such model or version.
        """
        known = self.models[name].versions if name in self.models else {}
        if number is not None:
            if number not in known:
                raise RequestError(
                    Code.NOT_FOUND, f"Could not find version {number} of model {name}"
                )
            return [known[number]]
        if not known:
            raise RequestError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
        return [known[number] for number in sorted(known, reverse=True)]

    async def poll(self) -> None:
        """Look at the disk once; start the loads and unloads that follow from it."""
        async with self._polling:
            await asyncio.gather(*map(self._look, list(self.models.values())))

    def cancel_loads(self) -> None:
        """Cancel the loads that wait, and end warm-ups. Available versions stay."""
        self._cancelling = True
        for task in self._loads:
            task.cancel()

    async def close(self) -> None:
        """Unload everything, and do not wait for requests any more."""
        self.cancel_loads()
        self._closed = True
        for model in self.models.values():
            self._remove(model)
        self.models = {}
        while tasks := self._loads | self._unloads:
            await asyncio.gather(*tasks, return_exceptions=True)
        for pool in (self._disk, self._loader, self._unloader):
            pool.shutdown(wait=False, cancel_futures=True)

    def _find(self, name: str, number: int | None, label: str | None) -> Version:
        model = self.models.get(name)
        if label is not None:
            if model is None or label not in model.entry.labels:
                raise invalid(f"Unrecognized servable version label: {label}")
            number = model.entry.labels[label]
        answering = model.available() if model else []
        wanted = number if number is not None else (answering[-1] if answering else None)
        if model is None or wanted not in answering:
            request = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: {request}")
        return model.versions[wanted]

    async def _look(self, model: Model) -> None:
        """Look for one model's versions on the disk, and act on what changed."""
        entry = model.entry
        fingerprints, problem = await in_thread(self._disk, _read, entry)
        if model.removed:
            return  # the list of models has changed meanwhile
        if problem and problem != model.problem and not model.staged:
            log.warning("%s: %s", entry.name, problem)
        model.problem = problem
        if not fingerprints:
            return  # what is served stays: an empty directory is no order to stop
        model.selected = sorted(fingerprints)
        for number, seen in fingerprints.items():
            self._consider(model, number, seen)
        self._retire_unwanted(model)

    def _consider(self, model: Model, number: int, seen: Fingerprint) -> None:
        """Load a version once its files have stopped changing, and again after they changed."""
        answering = model.versions.get(number)
        shared = model.predecessor.versions.get(number) if model.predecessor else None
        if shared and shared.state == State.AVAILABLE and shared.seen == seen:
            model.versions[number] = shared
            return
        versions_of = model.versions
        if answering and answering.state == State.AVAILABLE and answering is not shared:
            if answering.seen == seen:
                answering.message = ""
                return
            versions_of = model.replacements
        version = versions_of.get(number)
        if version and version.state == State.LOADING:
            return
        if version and version.failed and version.seen == seen:
            return  # and nothing has changed since
        if version is None or version.state != State.START:
            version = versions_of[number] = Version(model.entry.name, number, seen.directory)
        if version.look(seen, self._settle_seconds) and not self._cancelling:
            self._start_load(model, version)

    def _start_load(self, model: Model, version: Version) -> None:
        if version.seen and version.seen.complete:
            version.state = State.LOADING
            _start(self._loads, self._load_version(model, version))
            self._changed()
        else:
            missing = f"Could not find SavedModel .pb or .pbtxt at {version.path}"
            self._fail(model, version, RequestError(Code.NOT_FOUND, missing))

    async def _load_version(self, model: Model, version: Version) -> None:
        try:
            async with model.loading:
                await self._load_and_warm(version)
        except asyncio.CancelledError:
            if version.servable is not None:  # it is being warmed up: closing ends that
                _start(self._unloads, in_thread(self._unloader, version.servable.close))
            version.state = State.END
            raise
        except Exception as error:  # any: a broken file can raise anything at all
            if version.servable is not None:
                servable, version.servable = version.servable, None
                await in_thread(self._unloader, servable.close)
            if version.unwanted:
                version.state = State.END
            else:
                self._fail(model, version, error)
        else:
            self._serve(model, version)
        self._retire_unwanted(model)
        self._changed()

    async def _load_and_warm(self, version: Version) -> None:
        def work() -> None:
            log.info("loading %s version %d", version.model, version.number)
            version.servable = self._load(version.model, version.number, version.path)
            if self._cancelling:  # nobody waits for it
                version.servable.close()
            elif not version.unwanted:
                self._warm(version.servable)

        if version.unwanted:
            raise asyncio.CancelledError
        await in_thread(self._loader, work)

    def _serve(self, model: Model, version: Version) -> None:
        """Make a loaded version available, in place of an older one of the same number."""
        version.state = State.AVAILABLE
        if version.unwanted:
            self._unload(version)
            return
        if model.replacements.get(version.number) is version:
            del model.replacements[version.number]
            self._retire(model.versions[version.number])
            model.versions[version.number] = version
        log.info("serving %s version %d", version.model, version.number)

    def _fail(self, model: Model, version: Version, error: Exception) -> None:
        version.state, version.code = State.END, code_of(error)
        if version.code == Code.OK:
            version.code = Code.UNKNOWN
        version.message = cause(str(error)) or type(error).__name__
        log.error("cannot load %s version %d: %s", version.model, version.number, version.message)
        if model.replacements.get(version.number) is version:
            older = model.versions[version.number]
            older.message = f"The files were replaced and cannot be loaded: {version.message}"
        self._changed()

    def _retire_unwanted(self, model: Model) -> None:
        if model.staged or model.removed:
            return
        answering = model.available()
        if any(number in answering for number in model.selected):
            for number in answering:
                if number not in model.selected:
                    self._retire(model.versions[number])
        for number in [number for number in model.replacements if number not in model.selected]:
            self._retire(model.replacements.pop(number))
        unwanted = [n for n in sorted(model.versions) if n not in model.selected]
        ended = [n for n in unwanted if model.versions[n].state == State.END]
        for number in unwanted:
            if model.versions[number].state == State.START or number in ended[:-MAX_ENDED_VERSIONS]:
                del model.versions[number]

    def _retire(self, version: Version) -> None:
        """Unload a version after its last request, or end its load."""
        if version.state == State.AVAILABLE:
            self._unload(version)
        elif version.state == State.LOADING and not version.unwanted:
            version.unwanted = True
            if version.servable is not None:  # it is being warmed up: closing ends that
                _start(self._unloads, in_thread(self._unloader, version.servable.close))

    def _remove(self, model: Model) -> None:
        model.removed = True
        for version in (*model.versions.values(), *model.replacements.values()):
            self._retire(version)

    def _unload(self, version: Version) -> None:
        version.state = State.UNLOADING
        _start(self._unloads, self._unload_version(version))
        self._changed()

    async def _unload_version(self, version: Version) -> None:
        while version.users and not self._closed:
            version.unused.clear()
            await version.unused.wait()
        servable, version.servable, version.batchers = version.servable, None, {}
        await in_thread(self._unloader, servable.close)
        version.state = State.END
        log.info("unloaded %s version %d", version.model, version.number)
        self._changed()

    async def _settle(self, staged: list[Model]) -> None:
        while True:
            for model in staged:
                await self._look(model)
            if all(model.settled() for model in staged):
                return
            if self._cancelling:
                raise RequestError(Code.UNAVAILABLE, "The server is shutting down.")
            await asyncio.sleep(min(self._settle_seconds, SETTLE_POLL_SECONDS))

    def _commit(self, staged: list[Model]) -> None:
        """Put the staged models in place of all others."""
        old, self.models = self.models, {model.entry.name: model for model in staged}
        for model in staged:
            before, model.predecessor, model.staged = model.predecessor, None, False
            if before is None:
                continue
            del old[model.entry.name]
            before.removed = True
            for version in (*before.versions.values(), *before.replacements.values()):
                if model.versions.get(version.number) is not version:
                    self._retire(version)
                    model.versions.setdefault(version.number, version)
        for model in old.values():
            self._remove(model)
        for model in staged:
            self._retire_unwanted(model)
        self._changed()

    def _discard(self, staged: list[Model]) -> None:
        """Unload what was loaded for a refused list; its errors are reported."""
        for model in staged:
            model.removed = True
            shared = set(model.predecessor.versions.values()) if model.predecessor else set()
            for version in {*model.versions.values(), *model.replacements.values()} - shared:
                self._retire(version)
                if model.predecessor and version.failed:
                    model.predecessor.versions.setdefault(version.number, version)


def _read(entry: ModelEntry) -> tuple[dict[int, Fingerprint], str]:
    """Return the selected versions on the disk and their files; a reason where there is none."""
    path = entry.base_path
    try:
        present = versions.version_directories(path)
    except OSError as error:
        return {}, f"cannot read {path}: {error.strerror}"
    selected = entry.policy.select(list(present))
    if not present:
        return {}, f"no version folder such as {path}/1"
    if not selected:
        requested = ", ".join(map(str, entry.policy.versions))
        return {}, f"{path} has none of the requested versions ({requested})"
    return {number: versions.fingerprint(present[number]) for number in selected}, ""


def _check(model: Model) -> None:
    """Raise RequestError where a settled model cannot be served as its entry says."""
    name, answering = model.entry.name, model.available()
    if not answering:
        reasons = [version.message for version in model.versions.values() if version.failed]
        reason = model.problem or "; ".join(reasons)
        raise RequestError(Code.UNKNOWN, f"Servable {name} did not become available: {reason}")
    for version in model.entry.labels.values():
        if version not in answering:
            raise RequestError(
                Code.FAILED_PRECONDITION,
                f"Request to assign label to version {version} of model {name}, which is "
                "not currently available for inference",
            )


def _start(tasks: set[asyncio.Task], work: Coroutine[object, object, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def in_thread(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
    """Return the function's result, computed in the pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
