"""Models and their versions: found on the disk, loaded, served, unloaded.

TF Serving's availability-preserving order: a new version is loaded before the old one goes, and
the old one stays when the new one cannot be loaded. A version is unloaded when its last request
is answered. All state belongs to the event loop; one thread looks at the disk, one loads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from tfllm.serving import versions
from tfllm.serving.schema import Code, ModelEntry, RequestError, invalid
from tfllm.serving.servable import Servable, code_of, first_line

log = logging.getLogger("tfllm.serving")

ENDED_KEPT = 8  # versions whose end is still reported

Load = Callable[[str, int, Path], Servable]


class State(IntEnum):
    """ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class Version:
    """One version of a model, from the first sight of its directory to its end."""

    model: str
    number: int
    path: Path
    state: State = State.START
    code: Code = Code.OK
    message: str = ""
    servable: Any = None
    seen: versions.Fingerprint = ()
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    batchers: dict[str, Any] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Being loaded, served or unloaded."""
        return self.state in (State.LOADING, State.AVAILABLE, State.UNLOADING)


@dataclass
class Model:
    """A configured model: its entry and all its versions by number."""

    entry: ModelEntry
    versions: dict[int, Version] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)
    removed: bool = False
    problem: str = ""

    def available(self) -> list[int]:
        """Numbers of the versions that answer, ascending."""
        return sorted(n for n, v in self.versions.items() if v.state == State.AVAILABLE)

    def settled(self) -> bool:
        """Every wanted version either answers or has failed."""
        done = (State.AVAILABLE, State.END)
        return bool(self.wanted) and all(
            n in self.versions and self.versions[n].state in done for n in self.wanted
        )


class Models:
    """All models of a server. `apply` says which, `poll` brings the disk's news."""

    def __init__(
        self,
        load: Load,
        settle_seconds: float = 1.0,
        changed: Callable[[], None] = lambda: None,
    ):
        self._load = load
        self._settle_seconds = settle_seconds
        self._changed = changed
        self._disk = ThreadPoolExecutor(1, "disk")
        self._loader = ThreadPoolExecutor(1, "loader")
        self._tasks: set[asyncio.Task] = set()
        self._polling = asyncio.Lock()
        self.models: dict[str, Model] = {}

    @property
    def ready(self) -> bool:
        """Every configured model has a version that answers."""
        return bool(self.models) and all(model.available() for model in self.models.values())

    def apply(self, entries: list[ModelEntry]) -> None:
        """Replaces the list of models. Those left out are unloaded; labels are set by `label`."""
        names = {entry.name for entry in entries}
        for name in [name for name in self.models if name not in names]:
            model = self.models.pop(name)
            model.removed, model.wanted = True, []
            for version in list(model.versions.values()):
                self._retire(model, version)
        for entry in entries:
            if entry.name in self.models:
                self.models[entry.name].entry = entry
            else:
                self.models[entry.name] = Model(entry)

    def label(self, name: str, labels: dict[str, int], must_answer: bool = True) -> None:
        """Replaces a model's labels. FAILED_PRECONDITION where a version does not answer."""
        model = self.models[name]
        for version in labels.values():
            if must_answer and version not in model.available():
                raise RequestError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {name}, which is "
                    "not currently available for inference",
                )
        model.labels = dict(labels)

    @contextmanager
    def use(
        self, name: str, number: int | None = None, label: str | None = None
    ) -> Iterator[Version]:
        """A version that answers, held in memory until the block ends. Raises NOT_FOUND."""
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
        """The versions of a model, newest first. Raises NOT_FOUND."""
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
        """One look at the disk; starts the loads and unloads that follow from it."""
        async with self._polling:
            for model in list(self.models.values()):
                present = await self._present(model)
                if not present:
                    continue  # what is served stays: an empty directory is no order to stop
                model.wanted = model.entry.policy.wanted(list(present))
                for number in model.wanted:
                    await self._consider(model, number, present[number])
                self._retire_unwanted(model)

    async def wait_settled(self, poll_seconds: float) -> None:
        """Polls until every model's wanted versions answer or have failed."""
        while True:
            await self.poll()
            if all(model.settled() for model in self.models.values()):
                return
            await asyncio.sleep(min(poll_seconds, 0.05))

    async def close(self) -> None:
        """Unloads everything; waits for what is being loaded."""
        self.apply([])
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._disk.shutdown(wait=True)
        self._loader.shutdown(wait=True)

    def _find(self, name: str, number: int | None, label: str | None) -> Version:
        model = self.models.get(name)
        if label is not None:
            if model is None or label not in model.labels:
                raise invalid(f"Unrecognized servable version label: {label}")
            number = model.labels[label]
        answering = model.available() if model else []
        wanted = number if number is not None else (answering[-1] if answering else None)
        if model is None or wanted not in answering:
            request = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: {request}")
        return model.versions[wanted]

    async def _present(self, model: Model) -> dict[int, Path]:
        """The version directories; a problem is reported when it is new."""
        path = model.entry.base_path
        problem, present = "", {}
        try:
            present = await in_thread(self._disk, versions.present, path)
            if not present:
                problem = f"no version folder such as {path}/1"
        except OSError as error:
            problem = f"cannot read {path}: {error.strerror}"
        if problem and problem != model.problem:
            log.warning("%s: %s", model.entry.name, problem)
        model.problem = problem
        return present

    async def _consider(self, model: Model, number: int, path: Path) -> None:
        """Loads a version once its files have stopped changing, and again after they changed."""
        version = model.versions.get(number)
        if version and version.busy:
            return
        seen = await in_thread(self._disk, versions.fingerprint, path)
        if model.removed:
            return
        if version is None or (version.state == State.END and version.code == Code.OK):
            version = model.versions[number] = Version(model.entry.name, number, path)
        elif version.state == State.END:
            if seen == version.seen:
                return  # failed, and nothing has changed since
            version.state, version.code, version.message = State.START, Code.OK, ""
        unchanged = bool(seen) and seen == version.seen
        version.seen, version.path = seen, path
        if seen and (unchanged or versions.quiet_since(seen, self._settle_seconds)):
            version.state = State.LOADING
            self._start(self._bring_up(model, version))

    async def _bring_up(self, model: Model, version: Version) -> None:
        where = f"{version.model} version {version.number}"
        log.info("loading %s", where)
        try:
            servable = await in_thread(
                self._loader, self._load, version.model, version.number, version.path
            )
        except Exception as error:  # any: a broken file can raise anything at all
            version.state, version.code = State.END, code_of(error)
            if version.code == Code.OK:
                version.code = Code.UNKNOWN
            version.message = first_line(str(error)) or type(error).__name__
            log.error("cannot load %s: %s", where, version.message)
        else:
            version.servable, version.state = servable, State.AVAILABLE
            log.info("serving %s", where)
            if model.removed:
                self._retire(model, version)
        self._retire_unwanted(model)
        self._changed()

    def _retire_unwanted(self, model: Model) -> None:
        answering = model.available()
        if any(number in answering for number in model.wanted):
            for number in answering:
                if number not in model.wanted:
                    self._retire(model, model.versions[number])
        unwanted = [n for n in sorted(model.versions) if n not in model.wanted]
        ended = [n for n in unwanted if model.versions[n].state == State.END]
        for number in unwanted:
            if model.versions[number].state == State.START or number in ended[:-ENDED_KEPT]:
                del model.versions[number]

    def _retire(self, model: Model, version: Version) -> None:
        if version.state == State.AVAILABLE:
            version.state = State.UNLOADING
            self._start(self._take_down(version))

    async def _take_down(self, version: Version) -> None:
        while version.users:
            version.unused.clear()
            await version.unused.wait()
        servable, version.servable, version.batchers = version.servable, None, {}
        await in_thread(self._loader, servable.close)
        version.state = State.END
        log.info("unloaded %s version %d", version.model, version.number)
        self._changed()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._changed()


async def in_thread(pool: ThreadPoolExecutor, function: Callable, *arguments: Any) -> Any:
    """The function's result, computed in the pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
