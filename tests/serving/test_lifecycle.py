"""Versions come and go without a gap: with a loader that only pretends."""

import asyncio
import logging
import os
import shutil
import threading
import time

import pytest
import tensorflow as tf

from tfllm.serving import versions
from tfllm.serving.lifecycle import Models, State
from tfllm.serving.schema import Code, ModelEntry, RequestError, VersionPolicy

SECONDS = 30
SETTLE_SECONDS = 0.02


class Loader:
    """Loads nothing. `broken` maps a version to what its load raises."""

    def __init__(self, **broken):
        self.broken = broken
        self.events: list[tuple[str, int]] = []

    def __call__(self, name, number, path):
        self.events.append(("load", number))
        if error := self.broken.get(f"v{number}"):
            raise error
        return Loaded(self, number)


class Loaded:
    def __init__(self, loader, number):
        self.loader, self.number = loader, number

    def close(self):
        self.loader.events.append(("close", self.number))


def write(base, *numbers, age=60.0):
    for number in numbers:
        directory = base / str(number)
        directory.mkdir(parents=True)
        path = directory / "saved_model.pb"
        path.write_bytes(b"x")
        then = time.time() - age
        os.utime(path, (then, then))


def entry(base, kind="latest", count=1, numbers=(), **labels):
    policy = VersionPolicy(kind=kind, count=count, versions=tuple(numbers))
    return ModelEntry(name="m", base_path=str(base), policy=policy, labels=labels)


def live(loader, work):
    """Runs `work(models)` and closes."""

    async def inside():
        models = Models(loader, SETTLE_SECONDS)
        try:
            await asyncio.wait_for(work(models), SECONDS)
        finally:
            await models.close()

    asyncio.run(inside())


async def settle(models):
    """Polls until nothing is under way any more."""
    for _ in range(500):
        await models.poll()
        await asyncio.sleep(0.005)
        known = [
            v
            for m in models.models.values()
            for v in (*m.versions.values(), *m.replacements.values())
        ]
        if not {v.state for v in known} & {State.START, State.LOADING, State.UNLOADING}:
            return
    raise AssertionError("never settles")


def test_latest_is_loaded_and_then_ready(tmp_path):
    write(tmp_path, 1, 3, 2)

    async def work(models):
        models.apply([entry(tmp_path)])
        assert not models.ready
        await settle(models)
        assert models.ready
        assert models.models["m"].available() == [3]
        with models.use("m") as version:
            assert version.number == 3

    live(Loader(), work)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"count": 2}, [2, 3]),
        ({"kind": "all"}, [1, 2, 3]),
        ({"kind": "specific", "numbers": (1, 3, 9)}, [1, 3]),
    ],
)
def test_policies(tmp_path, policy, expected):
    write(tmp_path, 1, 2, 3)

    async def work(models):
        models.apply([entry(tmp_path, **policy)])
        await settle(models)
        assert models.models["m"].available() == expected

    live(Loader(), work)


def test_the_new_one_is_loaded_before_the_old_one_goes(tmp_path):
    write(tmp_path, 1)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        write(tmp_path, 2)
        await settle(models)
        assert models.models["m"].available() == [2]
        assert models.models["m"].versions[1].state == State.END

    live(loader, work)
    assert loader.events == [("load", 1), ("load", 2), ("close", 1), ("close", 2)]


def test_a_version_in_use_stays_until_its_last_request(tmp_path):
    write(tmp_path, 1)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        with models.use("m") as old, models.use("m", 1):
            write(tmp_path, 2)
            while models.models["m"].available() != [2]:
                await models.poll()
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            assert old.state == State.UNLOADING
            assert old.servable is not None
            with models.use("m") as new:
                assert new.number == 2
            with pytest.raises(RequestError, match=r"Specific\(m, 1\)"), models.use("m", 1):
                pass
            assert ("close", 1) not in loader.events
        await settle(models)
        assert ("close", 1) in loader.events

    live(loader, work)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError("cannot read"), Code.UNKNOWN),
        (ValueError("bad proto"), Code.UNKNOWN),
        (FileNotFoundError("no index"), Code.NOT_FOUND),
        (IndexError("cut short"), Code.UNKNOWN),
        (MemoryError(), Code.UNKNOWN),
        (tf.errors.DataLossError(None, None, "checksum"), Code.DATA_LOSS),
        (RequestError(Code.OK, "says that all is well"), Code.UNKNOWN),
    ],
)
def test_a_broken_version_leaves_the_old_one(tmp_path, error, code):
    write(tmp_path, 1)
    loader = Loader(v2=error)

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        write(tmp_path, 2)
        await settle(models)
        await settle(models)
        assert models.ready
        assert models.models["m"].available() == [1]
        broken, old = models.statuses("m")
        assert (broken.number, broken.state, broken.code) == (2, State.END, code)
        assert broken.message
        assert old.state == State.AVAILABLE

    live(loader, work)
    assert loader.events.count(("load", 2)) == 1  # not again and again


def test_a_repaired_version_is_tried_again(tmp_path):
    write(tmp_path, 1, 2)
    loader = Loader(v2=ValueError("broken"))

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        assert models.models["m"].available() == []
        loader.broken.clear()
        (tmp_path / "2" / "saved_model.pb").write_bytes(b"repaired")
        await settle(models)
        await settle(models)
        assert models.models["m"].available() == [2]

    live(loader, work)


def test_a_version_still_being_copied_is_left_alone(tmp_path):
    write(tmp_path, 1)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        directory = tmp_path / "2"
        directory.mkdir()
        await settle(models)  # no saved_model.pb yet
        for part in range(5):
            (directory / f"part{part}").write_bytes(b"x" * part)
            (directory / "saved_model.pb").write_bytes(b"x" * part)
            await models.poll()
            assert ("load", 2) not in loader.events
        await settle(models)  # nothing was written between two looks
        assert models.models["m"].available() == [2]

    live(loader, work)


def test_names_that_are_no_versions(tmp_path):
    write(tmp_path, 7)
    for name in ("tmp.8", ".9", "-10", "eleven", "1e3", "9" * 30):
        write(tmp_path, name)
    (tmp_path / "12").write_text("a file")
    (tmp_path / "00007").mkdir()
    assert versions.version_directories(tmp_path) == {7: tmp_path / "00007"}


def test_the_served_folder_disappears(tmp_path):
    write(tmp_path / "m", 1)

    async def work(models):
        models.apply([entry(tmp_path / "m")])
        await settle(models)
        (tmp_path / "m").rename(tmp_path / "gone")
        await settle(models)
        assert models.ready
        (tmp_path / "m").mkdir()
        await settle(models)
        assert models.ready

    live(Loader(), work)


def test_rollback_by_configuration(tmp_path):
    write(tmp_path, 1, 2)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        await models.change([entry(tmp_path, "specific", numbers=(1,))])
        assert models.models["m"].available() == [1]
        await models.change([entry(tmp_path)])
        assert models.models["m"].available() == [2]

    live(loader, work)
    assert loader.events[:3] == [("load", 2), ("load", 1), ("close", 2)]


def test_models_left_out_are_unloaded(tmp_path):
    write(tmp_path, 1)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        await models.change([])
        assert not models.ready
        with pytest.raises(RequestError, match=r"Latest\(m\)"), models.use("m"):
            pass
        with pytest.raises(RequestError, match="any versions of model m"):
            models.statuses("m")
        while ("close", 1) not in loader.events:
            await asyncio.sleep(0.005)

    live(loader, work)


def test_a_model_removed_while_it_loads_is_not_kept(tmp_path):
    write(tmp_path, 1)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path)])
        await models.poll()
        await models.change([])

    live(loader, work)
    assert loader.events in ([], [("load", 1), ("close", 1)])


def test_labels(tmp_path):
    write(tmp_path, 1, 2)

    def numbered(models, label):
        with models.use("m", label=label) as version:
            return version.number

    async def work(models):
        models.apply([entry(tmp_path, "all", stable=1, later=3)])  # at the start any will do
        await settle(models)
        assert numbered(models, "stable") == 1
        with pytest.raises(RequestError, match=r"Specific\(m, 3\)"):
            numbered(models, "later")
        with pytest.raises(RequestError, match="version 9 of model m") as error:
            await models.change([entry(tmp_path, "specific", numbers=(2,), stable=9)])
        assert error.value.code == Code.FAILED_PRECONDITION
        assert numbered(models, "stable") == 1  # as it was
        assert models.models["m"].available() == [1, 2]
        await models.change([entry(tmp_path, "all", stable=2)])
        assert numbered(models, "stable") == 2
        with pytest.raises(RequestError, match="Unrecognized servable version label: later"):
            numbered(models, "later")

    live(Loader(), work)


def test_a_label_moves_in_the_same_instant_as_its_version(tmp_path):
    """Nobody who asks by label meets a moment without it."""
    write(tmp_path, 1, 2)
    seen = []

    async def work(models):
        models.apply([entry(tmp_path, "specific", numbers=(1,), stable=1)])
        await settle(models)
        done = asyncio.ensure_future(
            models.change([entry(tmp_path, "specific", numbers=(2,), stable=2)])
        )
        while not done.done():
            with models.use("m", label="stable") as version:
                seen.append(version.number)
            await asyncio.sleep(0)
        await done
        with models.use("m", label="stable") as version:
            assert version.number == 2

    live(Loader(), work)
    assert set(seen) == {1}


def test_a_new_path_and_policy_never_mix_with_the_old_ones(tmp_path):
    """Version 1 is pinned; an edit that names an empty folder and no policy changes nothing."""
    write(tmp_path / "m", 1, 2)
    (tmp_path / "empty").mkdir()
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path / "m", "specific", numbers=(1,))])
        await settle(models)
        looks = [asyncio.ensure_future(models.poll()) for _ in range(3)]
        with pytest.raises(RequestError, match="did not become available: no version folder"):
            await models.change([entry(tmp_path / "empty")])
        await asyncio.gather(*looks)
        await settle(models)
        assert models.models["m"].available() == [1]
        assert models.models["m"].entry.base_path == str(tmp_path / "m")

    live(loader, work)
    assert ("load", 2) not in loader.events


def test_a_list_of_models_is_taken_whole_or_not_at_all(tmp_path):
    write(tmp_path / "m", 1, 2)
    write(tmp_path / "n", 3)
    loader = Loader(v3=ValueError("broken"))

    def other(name, base, **more):
        return ModelEntry(name=name, base_path=str(tmp_path / base), **more)

    async def work(models):
        models.apply([entry(tmp_path / "m", "specific", numbers=(1,), stable=1)])
        await settle(models)
        for wrong in (
            [entry(tmp_path / "m", stable=2), other("n", "n")],  # its only version is broken
            [other("renamed", "m"), other("n", "none")],  # there is no such folder
            [other("n", "m", labels={"stable": 5})],
        ):
            with pytest.raises(RequestError):
                await models.change(wrong)
            await settle(models)
            assert list(models.models) == ["m"]
            assert models.models["m"].available() == [1]
            with models.use("m", label="stable") as version:
                assert version.number == 1
        await models.change([other("renamed", "m")])
        assert list(models.models) == ["renamed"]
        assert models.models["renamed"].available() == [2]

    live(loader, work)
    assert loader.events.count(("load", 1)) == 1  # what was loaded was taken over, never twice
    assert sorted(loader.events).count(("load", 2)) == loader.events.count(("close", 2))


def test_a_version_that_was_loaded_is_taken_over(tmp_path):
    write(tmp_path, 1, 2)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path, "specific", numbers=(1,))])
        await settle(models)
        await models.change([entry(tmp_path, "all", both=1)])
        assert models.models["m"].available() == [1, 2]
        assert loader.events == [("load", 1), ("load", 2)]

    live(loader, work)


def replace_in_place(base):
    write_other(base / "1")


def replace_folder(base):
    shutil.rmtree(base / "1")
    write(base, 1)


def replace_by_rename(base):
    (base / "1").rename(base.parent / "away")
    write_other(base / "tmp.1")
    (base / "tmp.1").rename(base / "1")


def replace_with_same_size_and_time(base):
    """As `cp -p` or a backup puts it back: other content, all that can be set is the same."""
    path = base / "1" / "saved_model.pb"
    then = path.stat()
    path.unlink()
    path.write_bytes(b"y")
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


def replace_link(base):
    (base / "1").rename(base.parent / "first")
    write_other(base.parent / "second")
    (base / "1").symlink_to(base.parent / "second")


def write_other(directory):
    directory.mkdir(exist_ok=True)
    (directory / "saved_model.pb").write_bytes(b"other")


@pytest.mark.parametrize(
    "replace",
    [
        replace_in_place,
        replace_folder,
        replace_by_rename,
        replace_with_same_size_and_time,
        replace_link,
    ],
)
def test_other_files_under_the_same_number_are_loaded(tmp_path, replace):
    """The new content answers, and the old one did so until then and for requests that began."""
    base = tmp_path / "m"
    write(base, 1)
    loader = Loader()

    async def work(models):
        models.apply([entry(base)])
        await settle(models)
        with models.use("m") as old:
            replace(base)
            while ("load", 1) not in loader.events[1:]:
                await models.poll()
                with models.use("m"):
                    pass
                await asyncio.sleep(0.005)
            while models.models["m"].versions[1] is old:
                await asyncio.sleep(0.005)
            with models.use("m") as new:
                assert new.servable is not old.servable
            assert old.servable is not None
            assert ("close", 1) not in loader.events
        await settle(models)
        await settle(models)
        assert len(models.statuses("m")) == 1

    live(loader, work)
    assert loader.events.count(("load", 1)) == 2  # and not again and again


def test_the_same_number_at_another_path_is_another_version(tmp_path):
    write(tmp_path / "a", 1)
    write(tmp_path / "b", 1)
    paths = []

    async def work(models):
        models.apply([entry(tmp_path / "a", stable=1)])
        await settle(models)
        await models.change([entry(tmp_path / "b", stable=1)])
        with models.use("m", label="stable") as version:
            paths.append(version.path)

    live(Loader(), work)
    assert paths == [tmp_path / "b" / "1"]


def test_a_replacement_that_cannot_be_loaded_leaves_the_old_one(tmp_path):
    write(tmp_path, 1)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        loader.broken["v1"] = ValueError("checksum")
        write_other(tmp_path / "1")
        for _ in range(3):
            await settle(models)
            await asyncio.sleep(SETTLE_SECONDS)
        (status,) = models.statuses("m")
        assert (status.state, status.code) == (State.AVAILABLE, Code.OK)
        assert "checksum" in status.message
        assert loader.events == [("load", 1), ("load", 1)]
        loader.broken.clear()
        (tmp_path / "1" / "saved_model.pb").write_bytes(b"repaired")
        await settle(models)
        assert models.statuses("m")[0].message == ""
        while len(loader.events) < 4:  # the old one is closed once nothing asks it any more
            await asyncio.sleep(0.005)
        assert loader.events == [("load", 1)] * 3 + [("close", 1)]

    live(loader, work)


def test_a_version_without_a_graph_is_a_load_error(tmp_path, caplog):
    """Said once, in the log and in the status; loaded when the graph comes."""
    (tmp_path / "1" / "variables").mkdir(parents=True)
    (tmp_path / "1" / "variables" / "variables.index").write_bytes(b"x")
    (tmp_path / "2").mkdir()

    async def work(models):
        models.apply([entry(tmp_path, "all")])
        for _ in range(3):
            await settle(models)
            await asyncio.sleep(SETTLE_SECONDS)
        for number in (1, 2):
            (status,) = models.statuses("m", number)
            assert (status.state, status.code) == (State.END, Code.NOT_FOUND)
            assert str(tmp_path / str(number)) in status.message
        write_other(tmp_path / "1")
        await settle(models)
        assert models.models["m"].available() == [1]

    logging.getLogger("tfllm.serving").propagate = True
    with caplog.at_level(logging.ERROR):
        live(Loader(), work)
    assert len([r for r in caplog.records if "cannot load m version" in r.getMessage()]) == 2


class SlowLoader(Loader):
    """Loads of the model `slow` wait for `gate`."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    def __call__(self, name, number, path):
        if name == "slow":
            self.events.append(("wait", number))
            assert self.gate.wait(SECONDS)
        return super().__call__(name, number, path)


def test_a_model_that_loads_slowly_holds_up_nobody(tmp_path):
    write(tmp_path / "slow", 1, 2, 3, 4, 5, 6)
    write(tmp_path / "m", 1)
    loader = SlowLoader()

    async def work(models):
        slow = ModelEntry(
            name="slow", base_path=str(tmp_path / "slow"), policy=VersionPolicy(kind="all")
        )
        models.apply([slow, entry(tmp_path / "m")])
        while not models.models["m"].available():
            await models.poll()
            await asyncio.sleep(0.005)
        write(tmp_path / "m", 2)
        while models.models["m"].available() != [2]:
            await models.poll()
            await asyncio.sleep(0.005)
        while models.models["m"].versions[1].state != State.END:  # nor does it hold up unloading
            await asyncio.sleep(0.005)
        loader.gate.set()

    live(loader, work)


def test_a_stop_drops_the_loads_that_wait(tmp_path):
    write(tmp_path, 1, 2, 3)
    loader = SlowLoader()
    entries = [ModelEntry(name="slow", base_path=str(tmp_path), policy=VersionPolicy(kind="all"))]

    async def inside():
        models = Models(loader, SETTLE_SECONDS)
        models.apply(entries)
        while not loader.events:
            await models.poll()
            await asyncio.sleep(0.005)
        await asyncio.wait_for(models.close(), SECONDS)  # although the first load never ends
        loader.gate.set()

    asyncio.run(inside())
    while ("close", loader.events[0][1]) not in loader.events:  # what it still loads is freed
        time.sleep(0.005)
    assert len([what for what, _ in loader.events if what in ("wait", "load")]) == 2


def test_a_stop_ends_a_change_of_the_list(tmp_path):
    write(tmp_path / "m", 1)
    write(tmp_path / "slow", 1)
    loader = SlowLoader()

    async def inside():
        models = Models(loader, SETTLE_SECONDS)
        models.apply([entry(tmp_path / "m")])
        await settle(models)
        slow = ModelEntry(name="slow", base_path=str(tmp_path / "slow"))
        change = asyncio.ensure_future(models.change([slow]))
        while ("wait", 1) not in loader.events:
            await asyncio.sleep(0.005)
        models.cancel_loads()
        with pytest.raises(RequestError) as error:
            await asyncio.wait_for(change, SECONDS)
        assert error.value.code == Code.UNAVAILABLE
        assert models.models["m"].available() == [1]  # answers until the end
        await asyncio.wait_for(models.close(), SECONDS)
        loader.gate.set()

    asyncio.run(inside())


def test_a_stop_ends_a_warm_up(tmp_path):
    """Closing the servable is what ends its runs."""
    write(tmp_path, 1)
    loader = Loader()
    warming, closed = threading.Event(), threading.Event()

    class Endless(Loaded):
        def close(self):
            closed.set()

    def warm(servable):
        warming.set()
        assert closed.wait(SECONDS)
        raise RequestError(Code.UNAVAILABLE, "unloaded")

    async def inside():
        models = Models(
            lambda name, number, path: Endless(loader, number), SETTLE_SECONDS, warm=warm
        )
        models.apply([entry(tmp_path)])
        while not warming.is_set():
            await models.poll()
            await asyncio.sleep(0.005)
        await asyncio.wait_for(models.close(), SECONDS)

    asyncio.run(inside())
    assert closed.is_set()


def test_an_empty_folder_is_alive_and_not_ready(tmp_path):
    async def work(models):
        models.apply([entry(tmp_path)])
        await models.poll()
        assert not models.ready
        write(tmp_path, 1)
        await settle(models)
        assert models.ready

    live(Loader(), work)


def test_only_the_newest_ends_are_reported(tmp_path):
    async def work(models):
        models.apply([entry(tmp_path)])
        for number in range(1, 16):
            write(tmp_path, number)
            await settle(models)
        await settle(models)
        known = [version.number for version in models.statuses("m")]
        assert known[0] == 15
        assert len(known) <= 10

    live(Loader(), work)


def test_a_missing_folder_is_reported_once(tmp_path, caplog):
    async def work(models):
        models.apply([entry(tmp_path / "none")])
        for _ in range(5):
            await models.poll()

    logging.getLogger("tfllm.serving").propagate = True
    with caplog.at_level(logging.WARNING):
        live(Loader(), work)
    assert len([r for r in caplog.records if "cannot read" in r.getMessage()]) == 1
