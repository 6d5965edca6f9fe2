"""The private parts of uvicorn and TensorFlow that the server uses are as they were.

Where one of these fails, read the new version's source before raising its upper bound in setup.cfg.
"""

import configparser
import importlib.metadata
import inspect
from pathlib import Path

import httptools
import numpy as np
import pytest
import tensorflow as tf
from packaging.requirements import Requirement
from tensorflow.core.protobuf import config_pb2
from uvicorn.protocols.http import httptools_impl

from tests.serving.test_connections import ASK, H2C, head, length
from tfllm.serving import internals

ROOT = Path(__file__).parent.parent.parent


def requirement(name):
    """The range of a package in setup.cfg, among the requirements of all and of [serve]."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = settings["options"]["install_requires"] + settings["options.extras_require"]["serve"]
    wanted = [line.strip() for line in lines.splitlines() if line.strip()[:1].isalpha()]
    (found,) = [one for one in map(Requirement, wanted) if one.name == name]
    return found


@pytest.mark.parametrize("name", ["tensorflow", "uvicorn"])
def test_the_installed_version_is_in_a_range_with_an_upper_bound(name):
    wanted = requirement(name)
    assert any(part.operator == "<" for part in wanted.specifier), f"{name} needs an upper bound"
    assert importlib.metadata.version(name) in wanted.specifier


def test_uvicorns_private_parts_are_as_they_were():
    """Where this fails, read uvicorn's httptools_impl.py again before raising its upper bound."""
    source = inspect.getsource(httptools_impl.HttpToolsProtocol)
    cycle = inspect.getsource(httptools_impl.RequestResponseCycle)
    for text in (
        "app = self.app\n",
        "self.pipeline.appendleft((self.cycle, app))",
        "cycle, app = self.pipeline.pop()",
        "on_response=self.on_response_complete",
        'keep_alive=http_version != "1.0" and self.parser.should_keep_alive()',
        "self.cycle.disconnected = True",
        "self.headers.append((name, value))",
        "self.transport.close()",
        "self.parser.set_dangerous_leniencies(lenient_data_after_close=True)",
        '"state": self.app_state.copy()',
    ):
        assert text in source, text
    for text in (
        "if self.disconnected:\n            return",
        "self.waiting_for_100_continue = False",
        "self.response_started = True",
        "                    self.transport.close()\n                self.on_response()",
    ):
        assert text in cycle, text
    for line in httptools_impl.STATUS_LINE.values():
        assert line.startswith(b"HTTP/1.1 ")
    with pytest.raises(httptools.HttpParserUpgrade) as upgrade:
        httptools.HttpRequestParser(object()).feed_data(head(*H2C, length(ASK)) + ASK)
    assert upgrade.value.args[0] == len(head(*H2C, length(ASK)))


def test_uvicorns_protocol_has_every_part_that_is_used():
    protocol = internals.HttpToolsProtocol
    missing = [name for name in internals.PROTOCOL_METHODS if not callable(getattr(protocol, name))]
    source = inspect.getsource(protocol.__init__)
    missing += [name for name in internals.PROTOCOL_ATTRIBUTES if f"self.{name}" not in source]
    cycle = inspect.getsource(httptools_impl.RequestResponseCycle.__init__)
    missing += [name for name in internals.CYCLE_ATTRIBUTES if f"self.{name}" not in cycle]
    assert missing == []


def test_uvicorns_server_asks_for_its_signal_handlers_and_keeps_its_connections():
    source = inspect.getsource(internals.uvicorn.Server.serve)
    assert "with self.capture_signals():" in source
    shutdown = inspect.getsource(internals.uvicorn.Server.shutdown)
    assert "self.server_state.connections" in shutdown and "self.servers" in shutdown


def test_a_session_runs_extends_and_is_taken_apart():
    with tf.Graph().as_default() as graph:
        session = internals.GraphSession(graph, config_pb2.ConfigProto())
        number = tf.compat.v1.placeholder(tf.float32, [None], "number")
        tf.identity(2 * number, "double")
        session.extend()
        feeds = {session.handle("number:0"): np.array([1.5, 2.0], np.float32)}
        (doubled,) = session.run(feeds, [session.handle("double:0")], config_pb2.RunOptions())
    np.testing.assert_array_equal(doubled, [3.0, 4.0])
    session.close()
    with pytest.raises((RuntimeError, tf.errors.CancelledError), match="closed"):
        session.run(feeds, [], config_pb2.RunOptions())
    session.dismantle()
    assert graph.get_operations() == []


def test_no_other_file_of_the_server_touches_them():
    private = ("pywrap_", "_call_tf_sessionrun", "_as_tf_output", "_extend_graph", "httptools_impl",
               "tensorflow.python", "server_state", "dismantle_graph")  # fmt: skip
    for path in (ROOT / "tfllm" / "serving").glob("*.py"):
        if path.name != "internals.py":
            found = [name for name in private if name in path.read_text()]
            assert found == [], f"{path.name}: {found} belongs into internals.py"
