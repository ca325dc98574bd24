"""From calibrated copies to any number of boards: what is not known well is drawn widely, what was never seen too."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from circuits import InputError
from circuits.model import Estimate, ideal_device
from circuits.model.ensemble import draw_boards, element_spread, ensemble_of, kind_of
from circuits.synthesis import build_board
from tngd.device import tile_board


def known(deviation: float, error: float, observed: bool = True):
    """Twelve copies whose straight couplings scatter by `deviation`, each estimated to `error`; the rest is exact."""
    device = ideal_device(build_board(4, "differential", 0.01), 12)
    rng = np.random.default_rng(5)

    def of(name: str) -> Estimate:
        if kind_of(name) == "negative":
            return Estimate(1.0, 0.004, False)
        return Estimate(float(1 + np.hypot(deviation, error) * rng.standard_normal()), error, observed)

    copies = [replace(copy, gains={name: of(name) for name in copy.gains}) for copy in device.copies]
    cells = [
        replace(copy, temperatures=(of("temperature"),) * 4, inductances=(of("inductance"),) * 4) for copy in copies
    ]
    return replace(device, copies=tuple(cells))


def test_interval_of_a_spread_is_that_of_chi_square_without_what_estimates_add():
    found = ensemble_of(known(0.01, 0.004)).spreads["straight"]
    assert found.count == 12 * 6
    values = [e.value for copy in known(0.01, 0.004).copies for n, e in copy.gains.items() if kind_of(n) == "straight"]
    total, free = np.var(values, ddof=1), 12 * 6 - 1
    expected = [sqrt(total * free / stats.chi2.ppf(q, free) - 0.004**2) for q in (0.975, 0.025)]
    assert found.interval == pytest.approx(expected, rel=1e-12)
    assert found.deviation == pytest.approx(sqrt(total - 0.004**2), rel=1e-12)
    assert found.error == pytest.approx(0.004, rel=1e-12)


def test_a_spread_lost_in_its_errors_is_not_drawn_as_none():
    found = ensemble_of(known(0.0, 0.004))
    assert found.spreads["straight"].interval[0] == 0
    assert 0 < found.spreads["straight"].interval[1] < 0.004
    drawn = [draw_boards(found, build_board(4, "differential"), 1, seed).copies[0] for seed in range(40)]
    spread = [np.std([e.value for n, e in copy.gains.items() if kind_of(n) == "straight"]) for copy in drawn]
    assert min(spread) == 0  # it may well be
    assert max(spread) > 1e-4


def test_any_board_is_drawn_also_elements_that_no_program_used():
    found, board = ensemble_of(known(0.01, 0.001)), build_board(16, "differential", 0.02)
    assert "negative" not in found.spreads
    drawn = draw_boards(found, board, 200, 0)
    values = [e.value for copy in drawn.copies for n, e in copy.gains.items() if kind_of(n) == "negative"]
    parts = sum(part.element == "negative_1" for part in board.parts)
    assert np.std(values) == pytest.approx(0.02 / sqrt(3 * parts), rel=0.06)  # 3,200 of them, and clipped at 3
    assert drawn.fitted_on["spreads"]["negative"]["count"] == 0
    assert tile_board(draw_boards(found, build_board(8, "differential"), 3, 0)).copies == 3
    assert element_spread(drawn).count == 200 * 16 * 15


def test_impossible_draws_are_refused():
    found = ensemble_of(known(0.01, 0.001))
    for copies, seed in ((0, 0), (1, -1)):
        with pytest.raises(InputError, match="one board or more"):
            draw_boards(found, build_board(8, "differential"), copies, seed)
    with pytest.raises(InputError, match="calibrate a board that has them"):
        draw_boards(replace(found, spreads={}), build_board(8, "differential"), 1, 0)
