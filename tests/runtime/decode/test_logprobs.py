"""Log-probabilities against torch's log-softmax, and which tokens are named beside the chosen one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgeloop.runtime.decode.logprobs import score, token_logprobs


@pytest.mark.parametrize("spread", [0.1, 3.0, 200.0])
@pytest.mark.parametrize("top", [0, 1, 5, 300, 1000])
def test_they_are_the_log_softmax(spread, top):
    logits = np.random.default_rng(top).normal(40, spread, 300).astype(np.float32)
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    found = token_logprobs(logits, 17, top)
    assert found.token == 17
    assert found.logprob == pytest.approx(wanted[17].item(), rel=1e-6)
    values, ids = torch.topk(wanted, min(top, 300))
    assert [each.token for each in found.top] == ids.tolist()
    np.testing.assert_allclose([each.logprob for each in found.top], values.numpy(), rtol=1e-6, atol=1e-9)


def test_of_equal_logits_the_lowest_ids_are_named():
    logits = np.array([1, 3, 2, 3, 2, 2, 0], np.float32)
    assert [each.token for each in token_logprobs(logits, 0, 4).top] == [1, 3, 2, 4]
    assert [each.token for each in token_logprobs(np.ones(4, np.float32), 3, 2).top] == [0, 1]


def test_a_token_that_cannot_come_has_minus_infinity():
    logits = np.array([0, -np.inf, 0], np.float32)
    found = token_logprobs(logits, 1, 3)
    assert found.logprob == -math.inf
    assert [each.logprob for each in found.top] == pytest.approx([-math.log(2), -math.log(2), -math.inf])


def test_a_text_is_scored_by_the_row_before_each_token():
    logits = np.random.default_rng(0).normal(0, 2, (4, 50)).astype(np.float32)
    ids = [7, 0, 49, 3]
    found = score(ids, logits, 2)
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), -1)[range(3), ids[1:]].numpy()
    assert found.ids == tuple(ids)
    assert found.tokens[0] is None
    assert [each.token for each in found.tokens[1:] if each] == ids[1:]
    np.testing.assert_allclose([each.logprob for each in found.tokens[1:] if each], wanted, rtol=1e-6)
    assert found.total == pytest.approx(wanted.sum())
    assert [len(each.top) for each in found.tokens[1:] if each] == [2, 2, 2]
