"""kill -9 at random moments: the resumed run ends with the very weights of one that was not."""

import json
import subprocess
import sys

import pytest

from tests.helpers import recipes
from tests.training import kill_runs, strategy_runs

# Twenty kills over the three.
KILLS = {"one": 8, "mirrored": 6, "multi_worker": 6}
SECONDS = 3000


@pytest.mark.slow
@pytest.mark.parametrize("strategy", KILLS)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, strategy):
    folder = recipes.write_data(tmp_path / "data", train=strategy_runs.ROWS)
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kill_runs", strategy, str(folder),
         str(tmp_path / "runs"), str(KILLS[strategy]), "20261122"],
        cwd=strategy_runs.ROOT, env=strategy_runs.environment(), capture_output=True, text=True,
        timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [same for _, same in found] == [True] * KILLS[strategy], found
    # Most were killed while they trained, at different steps, not before or after it.
    steps = {step for step, _ in found}
    assert len(steps) > KILLS[strategy] / 2 and max(steps) < kill_runs.STEPS
