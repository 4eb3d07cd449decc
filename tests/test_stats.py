import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from bitsweep import stats


def test_wilson_interval_of_newcombes_example() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    low, high = stats.wilson_interval(81, 263, 0.95)
    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    low, high = stats.wilson_interval(15, 148, 0.95)
    assert (low, high) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))
    low, high = stats.wilson_interval(0, 20, 0.95)
    assert (low, high) == (pytest.approx(0, abs=1e-12), pytest.approx(0.1611, abs=5e-5))


@given(st.integers(1, 5000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_interval_holds_the_share(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    low, high = stats.wilson_interval(successes, n, confidence)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1


def test_wilson_interval_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        stats.wilson_interval(0, 0, 0.95)


def test_so_many_images_tell_a_drop_and_fewer_do_not() -> None:
    for b, c, margin in ((0, 0, 0.01), (30, 20, 0.03), (5, 9, 0.005)):
        enough = stats.images_to_tell(b, c, 1000, margin=margin, confidence=0.95)
        assert enough
        high, too_high = (
            stats.paired_difference_interval((b + 1) * n / 1002 - 1, (c + 1) * n / 1002 - 1, n - 2, 0.95)[1]  # type: ignore[arg-type]
            for n in (enough + 1, 0.98 * enough)
        )
        assert high <= margin < too_high
    assert stats.images_to_tell(30, 0, 1000, margin=0.03, confidence=0.95) is not None
    assert stats.images_to_tell(40, 0, 1000, margin=0.03, confidence=0.95) is None


def test_the_interval_of_a_median_holds_it_about_as_often_as_it_says() -> None:
    """Blocks of a machine that is slower now and then differ more than runs within a block do."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        blocks = [rng.normal(level, 0.01, 20) for level in rng.normal(1.0, 0.05, 20)]
        low, high = stats.median_interval(blocks, confidence=0.95, seed=seed)
        assert low <= np.median(np.concatenate(blocks)) <= high
        held += low <= 1.0 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_mcnemar_against_sums_of_binomials() -> None:
    for b, c in [(0, 0), (0, 5), (5, 0), (4, 16), (10, 10), (86, 150)]:
        n, k = b + c, min(b, c)
        naive = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
        assert stats.mcnemar_exact_p(b, c) == pytest.approx(naive, rel=1e-9)


def test_mcnemar_of_agrestis_approval_ratings() -> None:
    # A. Agresti, Categorical Data Analysis (1990), table 10.1: 86 and 150 changed their minds, p below 0.0001.
    assert stats.mcnemar_exact_p(86, 150) == pytest.approx(3.7e-5, rel=0.05)


def test_mcnemar_of_large_counts_is_finite() -> None:
    assert stats.mcnemar_exact_p(50_000, 50_000) == 1
    assert 0 < stats.mcnemar_exact_p(49_000, 51_000) < 1e-9


def test_paired_difference_interval_of_agrestis_approval_ratings() -> None:
    # The same table: 0.59 - 0.55 = 0.04, with a standard error of 0.0095.
    low, high = stats.paired_difference_interval(150, 86, 1600, 0.95)
    assert (low, high) == (pytest.approx(0.04 - 1.96 * 0.0095, abs=5e-4), pytest.approx(0.04 + 1.96 * 0.0095, abs=5e-4))
    assert stats.paired_difference_interval(86, 150, 1600, 0.95) == (pytest.approx(-high), pytest.approx(-low))


@pytest.mark.parametrize("p_b, p_c", [(0.02, 0.02), (0.1, 0.02), (0.2, 0.1), (0.5, 0.3)])
def test_paired_difference_interval_holds_the_difference_about_as_often_as_it_says(p_b: float, p_c: float) -> None:
    n, held = 60, 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            low, high = stats.paired_difference_interval(b, c, n, 0.95)
            ways = math.comb(n, b) * math.comb(n - b, c)
            held += ways * p_b**b * p_c**c * (1 - p_b - p_c) ** (n - b - c) * (low <= p_b - p_c <= high)
    assert held > 0.93


def test_paired_counts() -> None:
    a = np.array([True, True, False, False, True])
    b = np.array([True, False, True, False, False])
    assert stats.paired_counts(a, b) == (2, 1)


def test_sqnr_of_known_noise() -> None:
    reference = np.full(1000, 10.0)
    assert stats.sqnr_db(reference, reference + 1) == pytest.approx(20)
    assert stats.sqnr_db(reference, reference) == math.inf


def test_mean_kl_against_the_formula() -> None:
    p_logits, q_logits = (
        np.array([[0.0, 1.0, 2.0], [1000.0, 0.0, 0.0]]),
        np.array([[0.0, 0.0, 0.0], [1000.0, 0.0, 0.0]]),
    )
    p = np.exp(p_logits[0]) / np.exp(p_logits[0]).sum()
    assert stats.mean_kl(p_logits, q_logits) == pytest.approx((p * np.log(p * 3)).sum() / 2)


def test_percentiles_need_samples() -> None:
    assert stats.smallest_n_for_percentile(0.99) == 459
    assert stats.smallest_n_for_percentile(0.9) == 44
    assert stats.percentile_if_supported(np.arange(458.0), 0.99) is None
    assert stats.percentile_if_supported(np.arange(459.0), 0.99) == pytest.approx(453.42)


def _blocks(generator: np.random.Generator, mean: float, drift: np.ndarray) -> list[np.ndarray]:
    return [mean * level * generator.lognormal(0, 0.05, 8) for level in drift]


def test_interval_of_the_speedup_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        drift = np.linspace(1, generator.uniform(0.7, 1.5), 20)
        gain = stats.paired_speedup(
            _blocks(generator, 2.0, drift), _blocks(generator, 1.6, drift), confidence=0.95, seed=trial
        )
        covered += gain.low <= 1.25 <= gain.high
    assert 0.90 <= covered / 200 <= 1.0


@pytest.mark.parametrize(("factor", "verdict"), [(0.8, "faster"), (1.25, "slower")])
def test_verdict(factor: float, verdict: str) -> None:
    generator = np.random.default_rng(1)
    drift = np.linspace(1, 1.3, 20)
    gain = stats.paired_speedup(
        _blocks(generator, 1, drift), _blocks(generator, factor, drift), confidence=0.95, seed=0
    )
    assert gain.verdict == verdict
    assert gain.ratio == pytest.approx(1 / factor, rel=0.05)


def test_equal_speeds_are_not_distinguished() -> None:
    blocks = [np.full(5, 1 + 0.01 * (-1) ** turn) for turn in range(20)]
    gain = stats.paired_speedup(blocks, blocks, confidence=0.95, seed=0)
    assert (gain.verdict, gain.ratio) == ("not distinguishable", 1)


def test_less_than_processes_differ_is_not_distinguished() -> None:
    even = [np.full(5, 1.0)] * 20
    for ratio, verdict in ((1.02, "not distinguishable"), (1.03, "faster"), (0.98, "not distinguishable")):
        gain = stats.paired_speedup([ratio * block for block in even], even, confidence=0.95, seed=0)
        assert gain.verdict == verdict
        assert gain.low == pytest.approx(ratio * math.exp(-1.96 * 0.012), rel=1e-4)
        assert gain.high == pytest.approx(ratio * math.exp(1.96 * 0.012), rel=1e-4)


def test_slow_cores_may_have_slowed_one_of_the_two_alone() -> None:
    even = [np.full(5, 1.0)] * 20
    # Cores far apart: 1.37 for two programs that are equally fast otherwise.
    for ratio, verdict in ((1.37, "not distinguishable"), (4.5, "faster"), (0.4, "slower")):
        gain = stats.paired_speedup([ratio * block for block in even], even, confidence=0.95, seed=0, slowdown=1.5)
        assert gain.verdict == verdict
        assert gain.high / gain.low == pytest.approx(1.5**2 * math.exp(2 * 1.96 * 0.012), rel=1e-4)


def test_blocks_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="as many of each"):
        stats.paired_speedup([np.ones(3)], [], confidence=0.95, seed=0)


def test_spread() -> None:
    assert stats.relative_iqr(np.array([1.0, 2.0, 3.0])) == pytest.approx(0.5)


@given(n=st.integers(1, 2000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_s_interval_is_scipy_s(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert stats.wilson_interval(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(b=st.integers(0, 300), c=st.integers(0, 300))
def test_mcnemar_s_p_is_scipy_s(b: int, c: int) -> None:
    theirs = binomtest(min(b, c), b + c).pvalue if b + c else 1.0
    assert stats.mcnemar_exact_p(b, c) == pytest.approx(theirs, rel=1e-6)


def test_the_interval_of_a_speedup_is_scipy_s_bootstrap() -> None:
    rng = np.random.default_rng(3)
    fp32, own = ([rng.gamma(4, 1, 9) for _ in range(25)] for _ in range(2))
    ratios = np.array([np.median(a) / np.median(b) for a, b in zip(fp32, own, strict=True)])
    theirs = bootstrap(
        (ratios,),
        np.median,
        confidence_level=0.9,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    ours = stats.paired_speedup(fp32, own, confidence=0.9, seed=0, between=0)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
