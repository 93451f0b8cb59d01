"""Experts by domain: identities of the measures, and joining small domains."""

import numpy as np
import synthetic

from moejax.report import domains
from moejax.report.read import read


def test_equal_routing_carries_no_information():
  token_Y, share_YU = np.array([5.0, 3.0, 2.0]), np.tile([0.5, 0.3, 0.2], (3, 1))
  np.testing.assert_allclose(domains.lift(token_Y, share_YU), 1)
  assert abs(domains.information(token_Y[:, None] * share_YU)) < 1e-12


def test_information_is_bounded_by_the_entropy_of_the_domains():
  token_Y = np.array([1.0, 3.0])
  entropy = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
  np.testing.assert_allclose(domains.information(np.diag(token_Y)), entropy)


def test_shuffled_labels_show_the_bias_of_small_samples():
  """Known to first order: (U - 1)(Y - 1) / (2 N ln 2) bits."""
  token_Y, share_YU = np.full(4, 500.0), np.full((4, 8), 1 / 8)
  want = 7 * 3 / (2 * 2000 * np.log(2))
  np.testing.assert_allclose(domains.shuffled(token_Y, share_YU, draws=200), want, rtol=0.1)


def test_small_domains_are_joined_by_their_tokens(tmp_path):
  labels = [f"domain_{y:02d}" for y in range(domains.ROWS + 6)]
  path = synthetic.directory(tmp_path, synthetic.lines(10, labels=labels))
  raw, found = read(path).kind("domains")[-1], domains.of(read(path))
  assert len(found.labels) == domains.ROWS + 1 and found.labels[-1] == "6 others"
  assert found.token_Y.sum() == sum(raw["tokens"])
  weight_Y = np.array(raw["tokens"]) / sum(raw["tokens"])
  for layer, share_YU in found.share_YU.items():
    mean_U = found.token_Y / found.token_Y.sum() @ share_YU
    np.testing.assert_allclose(mean_U, weight_Y @ np.array(raw["layers"][layer]))
  loss = found.token_Y / found.token_Y.sum() @ found.loss_Y
  np.testing.assert_allclose(loss, weight_Y @ np.array(raw["loss"]))


def test_domains_of_a_few_tokens_have_no_row(tmp_path):
  rows = synthetic.lines(10, labels=("large", "small", "tiny"))
  rows[-2]["tokens"] = [9000, domains.TOKENS * synthetic.EXPERTS, 7]
  found = domains.of(read(synthetic.directory(tmp_path, rows)))
  assert found.labels == ["large", "small", "1 other"] and found.token_Y.tolist() == [9000, 64, 7]


def test_a_domains_line_that_does_not_fit_together_is_left_out(tmp_path):
  row = {"kind": "domains", "step": 1, "labels": ["a", "b"], "tokens": [1], "loss": [1.0]}
  assert domains.of(read(synthetic.directory(tmp_path, [row]))) is None
