"""Versions come and go without a gap: with a loader that only pretends."""

import asyncio
import logging
import os
import time

import pytest
import tensorflow as tf

from tfllm.serving import versions
from tfllm.serving.lifecycle import Models, State
from tfllm.serving.schema import Code, ModelEntry, RequestError, VersionPolicy

SECONDS = 30


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
        models = Models(loader)
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
        states = {v.state for m in models.models.values() for v in m.versions.values()}
        if not states & {State.LOADING, State.UNLOADING}:
            return
    raise AssertionError("never settles")


def test_latest_is_loaded_and_then_ready(tmp_path):
    write(tmp_path, 1, 3, 2)

    async def work(models):
        models.apply([entry(tmp_path)])
        assert not models.ready
        await models.wait_settled(0.01)
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
    assert versions.present(tmp_path) == {7: tmp_path / "00007"}


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
        models.apply([entry(tmp_path, "specific", numbers=(1,))])
        await settle(models)
        assert models.models["m"].available() == [1]
        models.apply([entry(tmp_path)])
        await settle(models)
        assert models.models["m"].available() == [2]

    live(loader, work)
    assert loader.events[:3] == [("load", 2), ("load", 1), ("close", 2)]


def test_models_left_out_are_unloaded(tmp_path):
    write(tmp_path, 1)
    loader = Loader()

    async def work(models):
        models.apply([entry(tmp_path)])
        await settle(models)
        models.apply([])
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
        models.apply([])

    live(loader, work)
    assert loader.events in ([], [("load", 1), ("close", 1)])


def test_labels(tmp_path):
    write(tmp_path, 1, 2)

    async def work(models):
        models.apply([entry(tmp_path, "all")])
        await settle(models)
        models.label("m", {"stable": 1})
        with models.use("m", label="stable") as version:
            assert version.number == 1
        with pytest.raises(RequestError, match="version 9 of model m") as error:
            models.label("m", {"stable": 9})
        assert error.value.code == Code.FAILED_PRECONDITION
        with models.use("m", label="stable") as version:  # as it was
            assert version.number == 1
        models.label("m", {"stable": 2})
        with models.use("m", label="stable") as version:
            assert version.number == 2
        models.label("m", {"next": 3}, must_answer=False)
        with pytest.raises(RequestError, match=r"Specific\(m, 3\)"), models.use("m", label="next"):
            pass

    live(Loader(), work)


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
