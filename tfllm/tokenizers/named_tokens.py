"""What a tokenizer has whose special tokens are known by their names: ids and the form of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfllm.tokenizers.config_files import Names, Settings
from tfllm.tokenizers.special_tokens import Form, RowTokenizer


class NamedTokenizer(RowTokenizer):
    """The properties of `base.Tokenizer` that follow from the fields below."""

    names: Names
    row_form: Form
    target_form: Form | None
    """Of targets, where it differs."""
    vocabulary: list[str]
    config: Mapping[str, Any]
    """tokenizer_config.json"""
    _ids: Mapping[str, int]

    def check_rows(self, max_length: int | None) -> None:
        """See RowTokenizer. A prompt is never cut by the tokenizer, so it does not matter there."""
        if max_length is not None:
            Settings(self.config).check_truncation()

    @property
    def form(self) -> Form:
        return self.row_form

    @property
    def target(self) -> Any:
        if self.target_form is None:
            return self
        changed: Any = self
        return dataclasses.replace(changed, row_form=self.target_form, target_form=None)

    @property
    def vocabulary_size(self) -> int:
        return len(self.vocabulary)

    @property
    def lowercase(self) -> bool:
        return False

    @property
    def pad_token_id(self) -> int | None:
        return self.token_id(self.names.pad)

    @property
    def unk_token_id(self) -> int | None:
        return self.token_id(self.names.unknown)

    @property
    def bos_token_id(self) -> int | None:
        return self.token_id(self.names.start)

    @property
    def eos_token_id(self) -> int | None:
        return self.token_id(self.names.end)

    @property
    def mask_token_id(self) -> int | None:
        return self.token_id(self.names.mask)

    def token_id(self, token: str | None) -> int | None:
        """The id of a token, None where the vocabulary lacks it."""
        return None if token is None else self._ids.get(token)
