"""Segments: who sees whom, and where in its document a token stands."""

import keras
import numpy as np

from tfllm.layers import segments

MASK = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], "int32")


def test_a_token_sees_its_own_document_up_to_itself():
    seen = np.asarray(segments.attention_mask(MASK))
    for row, mask in enumerate(MASK):
        for query in range(6):
            for key in range(6):
                want = key <= query and mask[query] == mask[key] != 0
                assert seen[row, query, key] == want


def test_a_window_counts_the_token_itself():
    seen = np.asarray(segments.attention_mask(MASK, window=2))
    assert seen[1].sum(-1).tolist() == [1, 2, 2, 2, 2, 2]
    assert seen[0].sum(-1).tolist() == [1, 2, 2, 1, 2, 0]


def test_places_start_again_in_each_document():
    assert np.asarray(segments.positions(MASK)).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]


def test_symbolic_rows_of_unknown_length():
    mask = keras.Input((None,), dtype="int32")
    model = keras.Model(mask, [segments.attention_mask(mask), segments.positions(mask)])
    seen, places = model(MASK)
    np.testing.assert_array_equal(seen, segments.attention_mask(MASK))
    np.testing.assert_array_equal(places, segments.positions(MASK))
