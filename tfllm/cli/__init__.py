"""The `tfllm` command: a table of verbs, one module each, imported when called.

A verb's module holds `COMMANDS`, a dict from sub-command to function (one entry named "" for a verb
without sub-commands), and `EXAMPLES`, the text under `--help`. The functions' signatures are the
options. Only this package prints to the user: results on stdout, progress and errors on stderr.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from tfllm.errors import TfllmError, did_you_mean

if TYPE_CHECKING:
    import typer

VERBS = {
    "quickstart": "Fine-tune a small encoder, export it, serve it, query it: five minutes.",
    "doctor": "Check the installation and the machine: versions, extras, processor, GPUs.",
    "inspect": "Describe a checkpoint or an artifact: family, task, shape, files, signatures.",
    "tokenizer": "Encode and decode text, check a tokenizer, train a vocabulary.",
    "prepare": "Tokenize a corpus into TFRecord shards for training.",
    "train": "Train a model from a recipe.",
    "launch": "Train a model from a recipe with several worker processes.",
    "tune": "Search for a recipe's best hyperparameters.",
    "evaluate": "Compute the metrics of a checkpoint or an artifact on a data file.",
    "predict": "Print predictions, one JSON line per input.",
    "generate": "Generate text after prompts or from sources.",
    "chat": "Hold a conversation in the terminal.",
    "convert": "Checkpoints between tfllm and Hugging Face, both ways.",
    "export": "Write a SavedModel, TFLite or MediaPipe artifact, checked against the checkpoint.",
    "serve": "Serve SavedModels with TF Serving's REST and gRPC contract.",
    "schema": "JSON Schemas of recipes and profiles, for editors.",
    "benchmark": "Measure latency, throughput and memory of a checkpoint or an artifact.",
}

INTERRUPTED = 130  # the shell's status for a command stopped by Ctrl-C


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: status 0 done, 2 wrong input, 1 an error of tfllm itself."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments else "--help"
    if verb in ("--help", "-h", "help"):
        print(_help())
        sys.exit(0)
    if verb == "--version":
        from tfllm.version import __version__

        print(f"tfllm {__version__}")
        sys.exit(0)
    if verb not in VERBS:
        _fail(f"there is no command '{verb}'. {did_you_mean(verb, VERBS)}", 2)
    sys.exit(_run(verb, arguments[1:]))


def _run(verb: str, arguments: list[str]) -> int:
    from tfllm.cli import termination
    from tfllm.runtimes.quiet import quiet_tensorflow_import

    # What TensorFlow's kernels write are plain lines; a server's log is JSON.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if verb == "serve" else "2")
    quiet_tensorflow_import()
    try:
        with termination.as_exit():  # train and serve have their own way to stop
            status = _application(verb)(arguments, prog_name=f"tfllm {verb}", standalone_mode=False)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except TfllmError as error:
        _fail(error.cli_message, error.exit_status)
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C.", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _fail(f"cannot write '{error.filename or 'the output'}': {error.strerror}.", 2)
    except Exception as error:
        return _usage_error(error, verb)
    return status if isinstance(status, int) else 0  # of typer.Exit


def _usage_error(error: Exception, verb: str) -> int:
    """Print click's message about the options as one line; return the status. Raises others."""
    import typer

    if isinstance(error, typer.Abort):
        _fail("stopped: the input has ended.", 1)
    if not hasattr(error, "format_message"):
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return error.exit_code  # type: ignore[attr-defined]
    message = " ".join(error.format_message().split()).removeprefix("Invalid value for ")
    message = re.sub(r"'(--[\w-]+)'", r"\1", message)
    _fail(f"{message.rstrip('.')}. See tfllm {verb} --help.", error.exit_code)  # type: ignore[attr-defined]


def _application(verb: str) -> typer.Typer:
    """The verb's typer application, from its module's COMMANDS."""
    import typer

    module = importlib.import_module(f"tfllm.cli.{verb}")
    application = typer.Typer(
        help=VERBS[verb],
        epilog=module.EXAMPLES,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for name, function in module.COMMANDS.items():
        application.command(name or None, epilog=module.EXAMPLES)(function)
    return application


def _help() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        "Transformer language models on Keras 3: train, evaluate, export, serve.\n\n"
        f"Usage: tfllm COMMAND [OPTIONS]\n\nCommands:\n{rows}\n\n"
        "Start with: tfllm quickstart        More on one: tfllm COMMAND --help"
    )


def _fail(message: str, status: int) -> NoReturn:
    print(f"tfllm: {message}", file=sys.stderr)
    sys.exit(status)
