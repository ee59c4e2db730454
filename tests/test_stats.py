"""Bad requests to `stats` are refused with a fix."""

import math

import numpy as np
import pytest

from fpjax import stats
from fpjax.core.errors import RequestError

T, H, C = [0.2, 0.4], [3, 1], [4, 4]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.clopper_pearson([1, 2, 3], [4, 4]), "one shape"),
        (lambda: stats.clopper_pearson([1, 5], C), "5 of 4 at index (1,)"),
        (lambda: stats.clopper_pearson([1, -1], C), "-1 of 4"),
        (lambda: stats.clopper_pearson([0, 0], [4, 0]), "0 of 0"),
        (lambda: stats.clopper_pearson(np.array([0.5, 0.2]), C), "integers"),
        (lambda: stats.clopper_pearson(H, C, confidence=1.0), "confidence"),
        (lambda: stats.isotonic_rate(1, 4), "one row"),
        (lambda: stats.t50([0.2, 0.4, 0.6], H, C), "one shape"),
        (lambda: stats.t50([0.4, 0.2], H, C), "increasing"),
        (lambda: stats.t50([0.0, 0.2], H, C), "increasing"),
        (lambda: stats.t50([0.2, 1.2], H, C), "last 1.2"),
        (lambda: stats.t50([0.2, math.nan], H, C), "increasing"),
        (lambda: stats.t50_interval(T, H, C, seed=0, resamples=10), "resamples"),
        (lambda: stats.t50_interval(T, H, C, seed=0, confidence=95.0), "confidence"),
        (lambda: stats.t_prime(T, [1, -1]), "-1 of"),
        (lambda: stats.t_prime(T, [1, 1, 1]), "one shape"),
        (lambda: stats.t_prime_alpha(T, H, C, floor=1.0), "floor"),
        (lambda: stats.t_prime_alpha(T, H, C, floor=-0.1), "floor"),
        (lambda: stats.t_prime_alpha(T, H, C, floor=0.1, alpha=0.0), "alpha"),
        (lambda: stats.rank_p_value(math.nan, [0.1]), "nan"),
        (lambda: stats.fewer_than_expected_p(5, 4, 0.1), "5 of 4"),
        (lambda: stats.fewer_than_expected_p(1, 4, 1.5), "rate"),
        (lambda: stats.leak_p(1, 4, 0, 0), "0 of 0"),
        (lambda: stats.leak_p(1, 4, 0, 4, beta=0.0), "beta"),
        (lambda: stats.fewer_than_expected_p(1, 4, 0.5, sensitivity=1.1), "sensitivity"),
        (lambda: stats.fewer_than_expected_p(1, 4, 0.5, beta=1.0), "beta"),
        (lambda: stats.permutation_p([], [1.0], seed=0), "members []"),
        (lambda: stats.permutation_p([math.nan], [1.0], seed=0), "nan"),
        (lambda: stats.permutation_p([1.0, 2.0], [1.0, math.nan], seed=0), "1 NaN"),
        (lambda: stats.permutation_p([1.0], [[1.0]], seed=0), "one row"),
        (lambda: stats.permutation_p([1.0], [1.0], seed=0, draws=998), "draws"),
        (lambda: stats.critical_count([-1], num_members=1, level=0.05, seed=0), "-1 of"),
        (lambda: stats.critical_count([1], num_members=0, level=0.05, seed=0), "num_members"),
        (lambda: stats.critical_count([1], num_members=1, level=0.0, seed=0), "level"),
        (lambda: stats.holm([0.1, 1.1]), "[0, 1]"),
        (lambda: stats.holm([math.nan]), "nan"),
        (lambda: stats.gamma_poisson_p(-1, [0]), "-1 of"),
        (lambda: stats.gamma_poisson_p(1, [0.5]), "integers"),
        (lambda: stats.mean_lower_limit([0.5, 1.5]), "1.5"),
        (lambda: stats.mean_lower_limit([math.nan]), "nan"),
        (lambda: stats.mean_lower_limit([0.5], confidence=95), "confidence"),
        (lambda: stats.detectable_rate(100, 0), "critical"),
        (lambda: stats.detectable_rate(100, 1, power=1.0), "power"),
        (lambda: stats.detectable_rate(100, 1, sensitivity=0.0), "sensitivity"),
        (lambda: stats.reproduction_interval(1, 4, sensitivity_lower=0.0), "sensitivity_lower"),
        (lambda: stats.samples_needed(0.0), "rate"),
    ],
)
def test_bad_requests_are_refused_with_a_fix(call, says):
    with pytest.raises(RequestError) as error:
        call()
    message = str(error.value)
    assert says in message
    assert all(part in message for part in ("got ", "expected ", "fix: "))
