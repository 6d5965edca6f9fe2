"""The results of a search: trials.json, trials.txt, best.yaml, history.png, parameters.png."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tfllm.training import directory as files
from tfllm.training.tuning.space import Range, with_values
from tfllm.training.tuning.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

JSON, TEXT, BEST = "trials.json", "trials.txt", "best.yaml"
HISTORY, PARAMETERS = "history.png", "parameters.png"
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
REPEATS = "repeats"  # the earlier trial with the same values, whose result a trial has
DOTS_PER_INCH = 150
IMPORTANCE_TRIALS = 5  # with fewer, the importance of settings is chance


def write_tables(study: Study, recipe: Mapping[str, Any]) -> None:
    """Write the tables, and the best recipe where there is one.

    Args:
        study: The search.
        recipe: The plain data of the recipe that is tuned.
    """
    rows = [trial_row(study, trial) for trial in study.optuna.get_trials(deepcopy=False)]
    rows = [row for row in rows if row["state"] in STATES.values()]
    data = {
        "measure": study.measure,
        "direction": "higher is better" if study.maximize else "lower is better",
        "trials": rows,
        "importance": importance(study),
    }
    files.write_text(study.folder / JSON, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    files.write_text(study.folder / TEXT, format_table(study, rows))
    if best := study.completed_trials():
        files.write_text(study.folder / BEST, best_recipe(study, recipe, best[0], len(rows)))


def trial_row(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial as plain data."""
    seconds = None
    if trial.datetime_start and trial.datetime_complete:
        seconds = round((trial.datetime_complete - trial.datetime_start).total_seconds(), 1)
    return {
        "number": trial.number,
        "state": STATES.get(trial.state.name, trial.state.name.lower()),
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "values": {key: trial.params.get(key) for key in study.space},
        "measurements": _in_order(trial.intermediate_values),
        "seconds": seconds,
        "error": trial.user_attrs.get("error"),
        "repeats": trial.user_attrs.get(REPEATS),
    }


def _in_order(measured: Mapping[int, float]) -> list[float | None]:
    """The measurements of a trial; None for undefined ones."""
    return [measured.get(number) for number in range(max(measured, default=-1) + 1)]


def format_table(study: Study, rows: list[dict[str, Any]]) -> str:
    """Format the trials as a text, the best first, those without a value last.

    Args:
        study: The search.
        rows: Of `trial_row`.
    """
    sign = -1 if study.maximize else 1
    order = sorted(
        rows, key=lambda r: (r["value"] is None, sign * (r["value"] or 0.0), r["number"])
    )
    header = ["trial", study.measure, *study.space, "seconds", "state"]
    lines = [header]
    for row in order:
        values = [format_value(row["values"][key]) for key in study.space]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        state = row["state"] + (f": {row['error']}" if row["error"] else "")
        if row["repeats"] is not None:
            state += f" as trial {row['repeats']}"
        lines.append([str(row["number"]), format_value(row["value"]), *values, seconds, state])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    padded = [
        "  ".join(
            [cell.ljust(width) for cell, width in zip(line, widths, strict=False)] + line[-1:]
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in padded) + "\n"


def format_value(value: Any) -> str:
    """Return a number with four digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best_recipe(study: Study, recipe: Mapping[str, Any], best: FrozenTrial, count: int) -> str:
    """Return the YAML of the recipe with the best trial's values.

    Args:
        study: The search.
        recipe: The plain data of the recipe that is tuned.
        best: The best trial.
        count: Number of trials that have a value.
    """
    values = {key: best.params[key] for key in study.space}
    data = with_values(recipe, {**values, "name": f"{recipe['name']}-tuned"})
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return (
        f"# {study.measure} {best.value:.4f} on the validation data: trial {best.number}, the best "
        f"of {count} so far.\n"
        "# It was chosen on this data, so expect slightly worse values on other data.\n" + text
    )


def importance(study: Study) -> dict[str, float] | None:
    """Compute the share of each key in the variance of the values (fANOVA, Hutter et al. 2014).

    None for a search of few trials or one key.
    """
    if len(study.completed_trials()) < IMPORTANCE_TRIALS or len(study.space) < 2:
        return None
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            row = optuna.importance.get_param_importances(study.optuna, evaluator=evaluator)
        except (RuntimeError, ValueError):  # all values are the same
            return None
    return {key: float(value) for key, value in row.items()}


def write_plots(study: Study) -> list[Path]:
    """Write history.png and parameters.png; nothing while no trial has a value."""
    done = sorted(study.completed_trials(), key=lambda trial: trial.number)
    if not done:
        return []
    return [_history(study, done), _parameters(study, done)]


def _history(study: Study, done: list[FrozenTrial]) -> Path:
    """Every trial's value, and the best so far."""
    figure, axes = _figure(1)
    numbers, values = [t.number for t in done], [t.values[0] for t in done]
    best, so_far = None, []
    for value in values:
        better = best is None or (value > best if study.maximize else value < best)
        best = value if better else best
        so_far.append(best)
    axes[0].scatter(numbers, values, label="trial")
    axes[0].step(numbers, so_far, where="post", color="tab:orange", label="best so far")
    pruned = [trial for trial in study.finished_trials() if trial.state.name == "PRUNED"]
    pruned = [trial for trial in pruned if trial.intermediate_values]
    if pruned:
        last = [t.intermediate_values[max(t.intermediate_values)] for t in pruned]
        axes[0].scatter(
            [t.number for t in pruned], last, marker="x", color="tab:gray", label="pruned"
        )
    axes[0].set_xlabel("trial")
    axes[0].set_ylabel(study.measure)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend()
    return _save(figure, study.folder / HISTORY)


def _parameters(study: Study, done: list[FrozenTrial]) -> Path:
    """A slice for every key: its values against the measure, later trials darker."""
    figure, axes = _figure(len(study.space))
    shares = importance(study) or {}
    for axis, (key, parameter) in zip(axes, study.space.items(), strict=True):
        values = [trial.params[key] for trial in done]
        if isinstance(parameter, Range):
            axis.set_xscale("log" if parameter.log else "linear")
        else:
            names = [str(choice) for choice in parameter.choices]
            axis.set_xticks(range(len(names)), names)
            values = [names.index(str(value)) for value in values]
        axis.scatter(values, [t.value for t in done], c=[t.number for t in done], cmap="Blues",
                     edgecolors="tab:blue")  # fmt: skip
        axis.set_xlabel(key)
        axis.set_ylabel(study.measure)
        if key in shares:
            axis.set_title(f"importance {shares[key]:.2f}")
    return _save(figure, study.folder / PARAMETERS)


def _figure(columns: int) -> tuple[Figure, Any]:
    """A figure that is format_value on no screen, with its axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 3.2 * columns), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Figure, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png")
    temporary.replace(path)
    return path
