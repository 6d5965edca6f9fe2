"""Reading and writing of a checkpoint's files: JSON, safetensors, whole directories."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.checkpoints.lazy_tensors import LazyTensors, aligned_empty
from tfllm.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from safetensors import safe_open

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
# safetensors' names of the dtypes that NumPy has (bfloat16 by ml_dtypes), and NumPy's.
READABLE_DTYPES = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
HEADER_SIZE = struct.Struct("<Q")  # a safetensors file begins with the bytes of its header
FULL = "the disk is full; free some space, or give another --output"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: Names the file and line of what is wrong.
    """
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


def write_json(path: Path, data: object) -> None:
    """Write indented JSON in UTF-8."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file.

    Args:
        path: The file.
        names: The tensors to read; None: all.

    Raises:
        CheckpointError: The file is damaged, or has a dtype that NumPy lacks (float8, float4), as
            quantized weights have.
    """
    tensors = open_tensors(path)
    return {name: tensors[name] for name in tensors if names is None or name in names}


def open_tensors(path: Path) -> LazyTensors:
    """Open a safetensors file. A dtype that NumPy lacks is an error of the access.

    Raises:
        CheckpointError: The file is damaged.
    """
    import ml_dtypes

    shapes = tensor_shapes(path)  # checks the file
    with path.open("rb") as file:
        (size,) = HEADER_SIZE.unpack(file.read(HEADER_SIZE.size))
        header = json.loads(file.read(size))

    def read(name: str) -> np.ndarray:
        shape, kind = shapes[name]
        if kind not in READABLE_DTYPES:
            raise CheckpointError(
                f"{path}: {name} is {kind}, a number of quantized weights. Use the checkpoint "
                "from before quantization (its model card names it as the base model)."
            )
        dtype = ml_dtypes.bfloat16 if kind == "BF16" else np.dtype(READABLE_DTYPES[kind])
        tensor = aligned_empty(shape, dtype)
        with path.open("rb") as file:
            file.seek(HEADER_SIZE.size + size + header[name]["data_offsets"][0])
            if file.readinto(tensor.reshape(-1).view(np.uint8)) != tensor.nbytes:  # type: ignore[arg-type]
                raise CheckpointError(f"{path} was cut off while it was read. Copy it again.")
        return tensor

    return LazyTensors(
        {name: shape for name, (shape, _) in shapes.items()},
        {name: READABLE_DTYPES.get(kind, kind) for name, (_, kind) in shapes.items()},
        read,
    )


def tensor_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the (shape, dtype) of every tensor in a safetensors file, without the tensors.

    Raises:
        CheckpointError: The file is damaged.
    """
    with _open(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file, with the metadata that transformers asks for."""
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors creates files that only their owner can read


@contextlib.contextmanager
def _open(path: Path) -> Iterator[safe_open]:
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
    """Write a directory under a temporary name, and rename it when the block succeeds.

    When anything fails, a full disk included, what was there before is unchanged.

    Args:
        directory: The directory.
        replaces: A file; an existing directory is replaced only where it holds it or is empty.

    Yields:
        The temporary directory.

    Raises:
        StorageError: The directory exists, or cannot be written.
    """
    target = Path(directory)
    check_writable(target, replaces)
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"  # hosts that share a disk may share ids
    part = target.parent / f".{target.name}.part-{unique}"
    old = target.parent / f".{target.name}.old-{unique}"
    try:
        part.mkdir(parents=True)
        yield part
        check_writable(target, replaces)  # another process may have written there meanwhile
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


def check_writable(target: str | Path, replaces: str = "") -> None:
    """Check that a directory may be written at `target`.

    Args:
        target: The directory.
        replaces: A file; an existing directory is replaced only where it holds it or is empty.

    Raises:
        StorageError: It exists, and may not be replaced.
    """
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
    """The problem with the disk that an error reports; empty for another error."""
    from safetensors import SafetensorError

    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return FULL
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return f"{os.strerror(error.errno or 0)}; give another --output"
    if isinstance(error, SafetensorError) and "os error" in str(error).lower():
        return FULL if "No space left" in str(error) else str(error)
    return ""
