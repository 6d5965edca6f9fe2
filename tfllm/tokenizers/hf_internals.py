"""The undocumented part of the `tokenizers` package that tfllm relies on: how it fails.

The package raises bare Exception. A panic of its Rust code arrives as a PanicException, which is no
Exception but a BaseException, so that `except Exception` does not catch it. setup.cfg pins the
versions that this was tested with, TOKENIZERS; tests/tokenizers/test_internals.py fails when
another version has changed it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tfllm.errors import TokenizerError

# The tested range, as in setup.cfg: from the first, below the second.
TOKENIZERS = ("0.22", "0.24")


@contextmanager
def translate_errors(
    texts: Sequence[str] = (), source: str | Path = "the tokenizers package"
) -> Iterator[None]:
    """Convert what a call of the package raises to TokenizerError.

    Args:
        texts: The texts that are encoded; empty where a file is read.
        source: The file, for messages.

    Raises:
        TokenizerError: The block raised anything but TokenizerError or a request to stop.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, TokenizerError):
        raise
    except BaseException as error:
        if texts:
            longest = max(map(len, texts))
            raise TokenizerError(
                f"{source}: it failed on a text of {longest:,} characters: {_first_line(error)}. "
                "Cut long texts, above all long runs of white space, into shorter ones."
            ) from None
        raise TokenizerError(
            f"{source}: not a usable tokenizer file: {_first_line(error)}"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
