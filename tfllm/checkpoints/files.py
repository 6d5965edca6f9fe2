"""Reading and writing a checkpoint's files: JSON, safetensors, and whole directories at once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import CheckpointError, StorageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
# safetensors' names of the numbers that NumPy has.
READABLE = (
    "BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "F16", "BF16", "F32", "F64",
    "C64",
)  # fmt: skip
FULL = "the disk is full; free some space, or give another --output"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming the file and line."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}:{error.lineno}: not JSON ({error.msg}). Copy the file again."
        ) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: not UTF-8 text (byte {error.start}). Copy the file again."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def write_json(path: Path, data: Any) -> None:
    """JSON as people read it."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, or those of these names. Raises CheckpointError for a
    damaged file and for numbers that NumPy has not (float8, float4), which are quantized weights.
    """
    import ml_dtypes  # noqa: F401  gives NumPy bfloat16

    tensors = {}
    with _opened(path) as file:
        for name in file.keys():
            if names is not None and name not in names:
                continue
            if (kind := file.get_slice(name).get_dtype()) not in READABLE:
                raise CheckpointError(
                    f"{path}: {name} is {kind}, a number of quantized weights. Use the checkpoint "
                    "from before quantization (its model card names it as the base model)."
                )
            tensors[name] = file.get_tensor(name)
    return tensors


def tensor_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of every tensor in a safetensors file, without reading the tensors."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file, with the note that transformers looks for."""
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors makes files that only their owner reads


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"There is no file '{path}'. Copy the checkpoint again.") from None
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise CheckpointError(
            f"{path} ({size} bytes) is not a whole safetensors file: {error}. "
            "It was cut off or is of another kind; copy or download it again."
        ) from None


@contextlib.contextmanager
def atomic_directory(directory: str | Path, replaces: str = "") -> Iterator[Path]:
    """A new directory under a temporary name, which takes its real name when all is written.

    An existing directory is replaced only when it is empty or holds a file called `replaces`.
    When anything fails, the disk being full included, what was there before is still there.
    Raises StorageError.
    """
    target = Path(directory)
    refuse_occupied(target, replaces)
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"  # on a shared disk two have the same number
    part = target.parent / f".{target.name}.part-{unique}"
    old = target.parent / f".{target.name}.old-{unique}"
    try:
        part.mkdir(parents=True)
        yield part
        refuse_occupied(target, replaces)  # another process may have written there meanwhile
        if target.exists():
            target.rename(old)
        part.rename(target)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        if problem := _storage_problem(error):
            kept = " What was there before is unchanged." if target.exists() else ""
            raise StorageError(f"Cannot write '{target}': {problem}.{kept}") from None
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def refuse_occupied(target: str | Path, replaces: str = "") -> None:
    """Raises StorageError unless a directory may be written at `target`: there is none, it is
    empty, or it holds the file `replaces`."""
    path = Path(target)
    if not path.exists():
        return
    if path.is_dir() and (not any(path.iterdir()) or (replaces and (path / replaces).exists())):
        return
    kind = "an older checkpoint" if replaces else "empty"
    raise StorageError(
        f"--output: '{path}' exists already and is not {kind}. Give another, or remove it first."
    )


def _storage_problem(error: BaseException) -> str:
    """What is wrong with the disk, where that is what an error says."""
    from safetensors import SafetensorError

    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return FULL
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return f"{os.strerror(error.errno or 0)}; give another --output"
    if isinstance(error, SafetensorError) and "os error" in str(error).lower():
        return FULL if "No space left" in str(error) else str(error)
    return ""
