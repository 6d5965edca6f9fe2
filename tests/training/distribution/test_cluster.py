"""Workers by TF_CONFIG and by Slurm's variables."""

import json

import pytest

from tfllm.errors import SettingError
from tfllm.training.distribution import cluster
from tfllm.training.distribution.cluster import Cluster

TWO = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}
SLURM = {
    "SLURM_STEP_NODELIST": "gpu[01-02,7]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "3", "SLURM_JOB_ID": "60123",
}  # fmt: skip


def test_no_cluster():
    assert cluster.find_cluster({}) is None
    assert cluster.find_cluster({"TF_CONFIG": " "}) is None
    assert cluster.find_cluster({"TF_CONFIG": "{}"}) is None
    one = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    assert cluster.find_cluster({"TF_CONFIG": json.dumps(one)}) is None


def test_tf_config_of_workers():
    found = cluster.find_cluster({"TF_CONFIG": json.dumps(TWO)})
    assert found == Cluster(("a:1", "b:2"), 1) and not found.is_chief and len(found) == 2
    assert json.loads(found.tf_config()) == TWO
    assert json.loads(found.tf_config(0))["task"]["index"] == 0


@pytest.mark.parametrize(
    "kind, index, place", [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)]
)
def test_a_chief_comes_first(kind, index, place):
    jobs = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
    text = json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})
    assert cluster.from_tf_config(text) == Cluster(("a:1", "b:2", "c:3"), place)


def workers(*addresses, **task):
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {**TWO["task"], **task}})


REFUSED = {
    "no JSON": ("{", "not readable"),
    "no mapping": ("[1]", "not readable"),
    "a text": ('"a:1"', "not readable"),
    "cluster is a list": ('{"cluster": ["a:1", "b:2"]}', "'cluster' is"),
    "task is a text": (json.dumps({**TWO, "task": "worker"}), "'task' is 'worker'"),
    "a list as text": (json.dumps({"cluster": {"worker": "a:1,b:2"}}), "'a:1,b:2', not a list"),
    "numbers": (json.dumps({"cluster": {"worker": [1, 2]}}), "not a list of texts"),
    "no port": (workers("a:1", "localhost"), "'localhost' is not host:port"),
    "port 0": (workers("a:1", "b:0"), "'b:0' is not host:port"),
    "port too high": (workers("a:1", "b:65536"), "'b:65536' is not"),
    "port in words": (workers("a:1", "b:http"), "'b:http' is not"),
    "no host": (workers("a:1", ":2"), "':2' is not host:port"),
    "twice": (workers("a:1", "b:2", "a:1"), "'a:1' twice"),
    "chief among the workers": (
        json.dumps({**TWO, "cluster": {"chief": ["a:1"], "worker": ["a:1", "b:2"]}}),
        "twice",
    ),
    "no task": (json.dumps({"cluster": TWO["cluster"]}), "no type and no index"),
    "task null": (json.dumps({**TWO, "task": None}), "no type and no index"),
    "no index": (json.dumps({**TWO, "task": {"type": "worker"}}), "no index"),
    "half an index": (workers("a:1", "b:2", index=0.5), "index 0.5"),
    "index in words": (workers("a:1", "b:2", index="first"), "index 'first'"),
    "index below 0": (workers("a:1", "b:2", index=-1), "worker -1"),
    "parameter servers": (json.dumps({**TWO, "cluster": {**TWO["cluster"], "ps": ["p:1"]}}), "ps"),
    "evaluator": (json.dumps({**TWO, "task": {"type": "evaluator", "index": 0}}), "'evaluator'"),
    "index": (json.dumps({**TWO, "task": {"type": "worker", "index": 2}}), "worker 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tf_config_without_sense_is_refused(case):
    text, message = REFUSED[case]
    with pytest.raises(SettingError, match=message) as raised:
        cluster.find_cluster({"TF_CONFIG": text})
    assert "TF_CONFIG" in str(raised.value)


def test_a_slurm_step_is_a_cluster():
    found = cluster.find_cluster(SLURM)
    hosts = [address.split(":")[0] for address in found.addresses]
    assert hosts == ["gpu01", "gpu01", "gpu02", "gpu02", "gpu7"]
    ports = [int(address.split(":")[1]) for address in found.addresses]
    first = 20_000 + 60123 % 30_000
    assert ports == [first, first + 1, first, first + 1, first]
    assert found.index == 3
    assert cluster.find_cluster({**SLURM, "TF_CONFIG": json.dumps(TWO)}).addresses == ("a:1", "b:2")
    assert cluster.find_cluster({name: SLURM[name] for name in list(SLURM)[:3]}) is None


def test_slurm_counts_that_disagree_are_refused():
    with pytest.raises(SettingError, match="3 hosts"):
        cluster.find_cluster({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2"})


@pytest.mark.parametrize(
    "text, names",
    [
        ("one", ["one"]),
        ("a,b", ["a", "b"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[009-010].lan,x", ["n009.lan", "n010.lan", "x"]),
        ("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"]),
    ],
)
def test_slurm_host_lists(text, names):
    assert cluster.host_names(text) == names


def test_addresses_of_all_kinds():
    assert cluster.host_and_port("worker-0.service:2222") == ("worker-0.service", 2222)
    assert cluster.host_and_port("[::1]:65535") == ("::1", 65535)
    found = cluster.find_cluster({"TF_CONFIG": workers("a:1", "b:2", index="1")})
    assert found.index == 1  # some operators write it as a text
    assert cluster.find_cluster({"TF_CONFIG": json.dumps({"cluster": {"worker": ["a:1"]}})}) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SLURM_PROCID", "9", "SLURM_PROCID is 9, but the step has 5 tasks"),
        ("SLURM_PROCID", "x", "not readable"),
        ("SLURM_STEP_TASKS_PER_NODE", "two", "not readable"),
        ("SLURM_STEP_NODELIST", "gpu[a-b]", "not readable"),
    ],
)
def test_slurm_variables_without_sense_are_refused(name, value, message):
    with pytest.raises(SettingError, match=message):
        cluster.find_cluster({**SLURM, name: value})
