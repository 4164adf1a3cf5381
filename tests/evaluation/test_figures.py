"""Intervals say what was measured: against published values and against what must hold of any sample."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from ipadapter_engine.evaluation.figures import Figure, effective_count, mean_of, median_of, share_of, wilson


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3
    [(81 / 263, 263, 0.2553, 0.3662), (15 / 148, 148, 0.0624, 0.1605), (0.0, 20, 0.0, 0.1611), (1 / 29, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_wilson_is_as_published(share: float, count: int, low: float, high: float) -> None:
    assert wilson(share, count) == pytest.approx((low, high), abs=1e-4)


def test_pictures_that_fail_together_count_as_one_character() -> None:
    together = np.repeat(np.arange(40) % 2 == 0, 4).reshape(40, 4)
    assert effective_count(together) == 40
    apart = np.random.default_rng(0).random((4000, 4)) < 0.5
    assert effective_count(apart) == pytest.approx(16_000, rel=0.1)
    assert effective_count(np.ones((50, 3), bool)) == 50


def test_one_picture_a_character_is_wilsons_own_interval() -> None:
    right = (np.arange(90) % 3 == 0)[:, None]
    assert share_of(right).interval_95 == wilson(float(right.mean()), 90)


def test_a_mean_weighs_pictures_and_few_characters_have_no_interval() -> None:
    figure = mean_of(np.array([2.0, 9.0, 0.5, 1.0]), np.array([2, 12, 1, 1]))
    assert figure.value == pytest.approx(12.5 / 16)
    assert figure.interval_95 is None
    assert mean_of(np.arange(4.0)).interval_95 is None
    assert mean_of(np.arange(5.0)).interval_95 is not None
    assert median_of([[1.0]] * 4).interval_95 is None


def test_a_means_interval_is_students_where_every_character_counts_once() -> None:
    values = np.random.default_rng(1).normal(0.4, 0.2, 12)
    low, high = scipy.stats.t.interval(0.95, 11, values.mean(), values.std(ddof=1) / 12**0.5)
    assert mean_of(values).interval_95 == pytest.approx((low, high))


def test_a_share_stays_within_0_and_1_and_is_wilsons_where_all_characters_are_alike() -> None:
    counts = np.array([2, 4, 1, 3, 2, 5])
    assert mean_of(counts.astype(float), counts, share=True).interval_95 == wilson(1.0, 6)
    assert mean_of(counts.astype(float), counts).interval_95 == (1.0, 1.0)
    near = mean_of(np.array([1.0, 1.0, 1.0, 1.0, 0.8, 1.0]), share=True).interval_95
    assert near is not None
    assert near[1] == 1.0


def one_a_character(rng: np.random.Generator) -> Figure:
    return mean_of(rng.normal(0.5, 0.2, 30))


def uneven_shares(rng: np.random.Generator) -> Figure:
    """Pictures that succeed together, from 1 to 8 of a character."""
    counts = rng.integers(1, 9, 30)
    return mean_of(rng.binomial(counts, rng.beta(2, 2, 30)), counts, share=True)


def attributes(rng: np.random.Generator) -> Figure:
    return share_of(rng.random((30, 4)) < rng.beta(2, 2, (30, 1)))


@pytest.mark.parametrize("draw", [one_a_character, uneven_shares, attributes])
def test_intervals_of_30_characters_hold_the_truth_as_often_as_they_say(
    draw: Callable[[np.random.Generator], Figure],
) -> None:
    rng, truth = np.random.default_rng(3), 0.5
    intervals = [draw(rng).interval_95 for _ in range(2000)]
    covered = np.mean([i is not None and i[0] <= truth <= i[1] for i in intervals])
    assert 0.93 <= covered <= 0.975


def test_the_median_is_not_moved_by_one_slow_picture_or_one_subject_with_many() -> None:
    assert median_of([[1.0], [1.1], [0.9], [60.0], [1.0]]).value == 1.0
    assert median_of([[1.0], [1.0], [1.0], [9.0] * 50]).value == 1.0


def test_pictures_that_share_a_batchs_time_are_one_measurement() -> None:
    times = np.random.default_rng(2).normal(1, 0.2, 30)
    assert median_of([[x] * 16 for x in times]) == median_of([[x] for x in times])


def test_the_medians_bootstrap_holds_little_in_memory() -> None:
    times = [[x] for x in np.random.default_rng(2).normal(1, 0.2, 5_000)]
    tracemalloc.start()
    median_of(times)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6
