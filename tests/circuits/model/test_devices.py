"""Device files, the devices of the package, and what a copy does with a program: at any temperature, as it is read."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from conftest import needs_ngspice
from simulated import rough_device, truth

from circuits import Conditions, InputError, assemble, reading_covariance
from circuits.calibration.presets import OFFSET, TOLERANCE, shipped_design
from circuits.copies import gains_of, nominal_copy
from circuits.files import sha256, write_json
from circuits.model import (
    PRESETS,
    Converter,
    Device,
    Estimate,
    FittedCopy,
    Interface,
    describe_device,
    draw_device,
    ideal_device,
    load_device,
    predict,
)
from circuits.model.converters import board_interface, converted_law
from circuits.model.device_file import device_hash, device_path
from circuits.model.ensemble import element_spread
from circuits.model.pairs import pair_model
from circuits.nodal import assemble_gains
from circuits.ou import reading_covariances
from circuits.synthesis import BoardOptions, build_board, make_design
from tngd.device import tile_board

NEGATIVE = np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]])  # takes negative elements


@pytest.fixture(scope="module")
def shipped():
    return shipped_design()


def equipped() -> Device:
    """A device with every field set."""
    made = make_design(NEGATIVE, cells="active")
    device = ideal_device(made.board, 2)
    rows = {
        "readout_gains": tuple(Estimate(1 + k / 1000, 1e-4, True) for k in (1, -2, 3)),
        "readout_offsets": tuple(Estimate(k * 1e-4, 1e-5, False) for k in (1, -2, 0)),
    }
    interface = Interface(Converter(8, 3.0, 0.01, 0.02, 1e6), Converter(12), 10, {"R": 1e-4, "C": -3e-5})
    copies = (replace(device.copies[0], **rows), device.copies[1])
    return replace(device, copies=copies, interface=interface, values=made.program.values)


# --- the file


def test_device_file_round_trips_exactly_with_si_names(tmp_path):
    device, path = equipped(), tmp_path / "device.json"
    content = describe_device(device)
    write_json(path, content)
    assert load_device(path) == device
    assert json.dumps(describe_device(load_device(path))) == json.dumps(content)
    assert content["schema"] == "tngd.device/4"
    assert content["program_F"] == device.values
    assert content["copies"][0]["readout_offsets_V"][1]["value"] == -2e-4
    assert content["interface"]["dac"] == {
        "bits": 8, "range_rms": 3.0, "noise_rms": 0.01, "offset_rms": 0.02, "rate_Hz": 1e6
    }  # fmt: skip
    assert content["interface"]["temperature_coefficients_per_K"] == {"R": 1e-4, "C": -3e-5}
    assert content["nominal"]["inductance_1"] == {"nominal_H": pytest.approx(1e-5)}


def test_every_part_of_a_device_is_in_its_hash():
    device = equipped()
    others = [
        replace(device, interface=Interface()),
        replace(device, values={}),
        replace(device, copies=device.copies[:1]),
        replace(device, copies=(replace(device.copies[0], readout_gains=()), device.copies[1])),
        replace(device, copies=(replace(device.copies[0], readout_offsets=()), device.copies[1])),
    ]
    assert len({device_hash(each) for each in (device, *others)}) == 6
    assert device_hash(replace(device, fitted_on={"route": "other"})) == device_hash(device)


def first(device: Device, **changes) -> Device:
    return replace(device, copies=(replace(device.copies[0], **changes), *device.copies[1:]))


def estimates(*values: float, error: float = 0.0) -> tuple[Estimate, ...]:
    return tuple(Estimate(value, error, True) for value in values)


def on_board(**changes):
    """The same device on a board that differs; a part, source or cell that is changed is the first."""

    def change(device: Device) -> Device:
        board = device.board
        several = {name: value for name, value in changes.items() if isinstance(value, dict)}
        rows = {
            name: (replace(getattr(board, name)[0], **own), *getattr(board, name)[1:]) for name, own in several.items()
        }
        return replace(device, board=replace(board, **(changes | rows)))

    return change


IMPOSSIBLE = {
    "negative unit": (on_board(unit=-1e-9), "unit of -1e-09"),
    "no capacitance": (on_board(capacitance=0.0), "capacitance of 0"),
    "source that takes noise away": (on_board(sources={"conductance": -1e-3}), "conductance of .* of -0.001"),
    "negative tolerance": (on_board(parts={"tolerance": -0.01}), "tolerance of .* of -0.01"),
    "part of no value": (on_board(parts={"nominal": 0.0, "element": None}), "nominal value of .* of 0"),
    "cell without nodes": (on_board(cells={"nodes": ()}), "a cell without 2 nodes"),
    "board of another kind": (on_board(kind="triple"), "capacitive and triple"),
    "readout gains of another size": (lambda d: first(d, readout_gains=estimates(1, 1)), "for each cell"),
    "readout offsets of another size": (lambda d: first(d, readout_offsets=estimates(0)), "for each cell"),
    "negative readout gain": (lambda d: first(d, readout_gains=estimates(1, -1, 1)), "gain of -1"),
    "temperature of zero": (lambda d: first(d, temperatures=estimates(1, 0, 1)), "gain of 0"),
    "inductance missing": (lambda d: first(d, inductances=estimates(1, 1)), "for each cell"),
    "negative error": (lambda d: first(d, temperatures=estimates(1, 1, 1, error=-1e-3)), "± -0.001"),
    "gain missing": (lambda d: first(d, gains={}), "one gain for each"),
    "program of another board": (lambda d: replace(d, values={"straight_7_8": 1e-9}), "straight_7_8"),
    "no copies": (lambda d: replace(d, copies=()), "no copies"),
    "runs away": (
        lambda d: first(d, gains=d.copies[0].gains | {"negative_2": Estimate(30.0, 0.0, True)}),
        "ideal-1 would run away",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_devices_are_refused_whole_and_sealed_as_they_are(case, tmp_path):
    change, says = IMPOSSIBLE[case]
    write_json(tmp_path / "device.json", describe_device(change(equipped())))
    with pytest.raises(InputError, match=f"not usable: .*{says}.*make it again"):
        load_device(tmp_path / "device.json")


DAMAGE = {
    "an older schema": (lambda c: c.update(schema="tngd.device/3"), "does not say schema tngd.device/4"),
    "NaN offset": (lambda c: c["copies"][0]["readout_offsets_V"][0].update(value=np.nan), "was changed"),
    "infinite error": (lambda c: c["copies"][0]["readout_offsets_V"][0].update(standard_error=np.inf), "was changed"),
    "edited offset": (lambda c: c["copies"][0]["readout_offsets_V"][0].update(value=0.1), "was changed"),
    "edited bits": (lambda c: c["interface"]["adc"].update(bits=11), "was changed"),
    "no bits that there are": (lambda c: c["interface"]["adc"].update(bits=0), "damaged .*1 to 24 bits, got 0"),
    "text for bits": (lambda c: c["interface"]["adc"].update(bits="many"), "is damaged"),
    "edited coefficient": (lambda c: c["interface"]["temperature_coefficients_per_K"].update(R=0.0), "was changed"),
    "edited program": (lambda c: c["program_F"].update(ground_1=2e-9), "was changed"),
    "no program": (lambda c: c.pop("program_F"), "is damaged"),
    "no interface": (lambda c: c.pop("interface"), "is damaged"),
    "edited board": (lambda c: c["board"].update(unit=2e-9), "was changed"),
    "seal of another": (lambda c: c.update(device_sha256="0" * 64), "was changed"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_and_edited_files_are_refused(case, tmp_path):
    change, says = DAMAGE[case]
    content = describe_device(equipped())
    change(content)
    if says != "was changed":  # with a seal that fits, so that it is the content which is refused
        content["provenance"].pop("content_sha256")
        seal = sha256(json.dumps(content, sort_keys=True))
        content["provenance"]["content_sha256"] = seal
    (tmp_path / "device.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{says}.*make it again"):
        load_device(tmp_path / "device.json")


# --- the devices of the package


def test_presets_go_by_name_unless_a_file_has_it(here):
    assert [load_device(name).copies[0].name for name in PRESETS] == [
        "ideal-1", "copy-1", "copy-2", "copy-3", "worst-case"
    ]  # fmt: skip
    write_json(here / "board-1", describe_device(equipped()))
    assert load_device("board-1") == equipped()
    (here / "board-2").mkdir()
    assert load_device("board-2").copies[0].name == "copy-2"
    assert device_path("board-4").name == "board-4"


def test_presets_are_of_the_shipped_design_and_make_tiles_that_stay_the_same(shipped):
    for name in PRESETS:
        device = load_device(name)
        assert device.board == shipped.board
        assert_same_values(device.values, shipped.program.values)
        assert device.interface == board_interface(shipped.board)
        one, other = tile_board(device, 3), tile_board(load_device(name), 3)
        assert (one.straight == other.straight).all()
        assert (one.temperature == other.temperature).all()
        assert one.copies == 1


def test_preset_boards_are_the_copies_of_the_shipped_design(shipped):
    for name, copy in zip(PRESETS[1:4], shipped.copies, strict=True):
        device = load_device(name)
        for element, estimate in device.copies[0].gains.items():
            parts = [part.name for part in shipped.board.parts if part.element == element]
            if estimate.observed:
                assert abs(estimate.value - np.mean([copy.gains[part] for part in parts])) < 3e-4
        full = reading_covariance(assemble(shipped.board, shipped.program, copy, Conditions()))
        ours = reading_covariance(predict(device, 0, shipped.program))
        assert np.linalg.norm(ours - full) < 1e-4 * np.linalg.norm(full)


def assert_same_values(found: dict[str, float], expected: dict[str, float]) -> None:
    """The same elements; their values come from LAPACK, whose last digits depend on the processor."""
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-9)


def values(copy: FittedCopy) -> list[float]:
    rows = (copy.temperatures, copy.inductances, copy.readout_gains, copy.readout_offsets)
    return [estimate.value for row in (copy.gains.values(), *rows) for estimate in row]


@needs_ngspice
def test_presets_are_made_again_the_same(tmp_path, works, refused):
    folder = tmp_path / "made"
    assert works("devices", "--make", folder).split() == [str(folder / f"{name}.json") for name in PRESETS]
    for name in PRESETS:
        kept, made = load_device(name), load_device(folder / f"{name}.json")
        assert (kept.board, kept.interface) == (made.board, made.interface)
        assert_same_values(kept.values, made.values)
        for old, new in zip(kept.copies, made.copies, strict=True):
            assert values(old) == pytest.approx(values(new), abs=1e-6)
            errors = [[e.standard_error for e in copy.gains.values()] for copy in (old, new)]
            assert errors[0] == pytest.approx(errors[1], rel=1e-2)
    assert "exists already" in refused("devices", "--make", folder)


def test_a_device_gets_other_converters(here, works, refused):
    words = ["--dac-bits", 8, "--dac-range", 3, "--adc-noise", 0.01, "--adc-rate", 1e6, "--source-bits", 10]
    assert "DAC 8 bits, full scale ±3 rms" in works("interface", "board-1", "--out", "mine.json", *words)
    old, found = load_device("board-1"), load_device("mine.json")
    coefficients = old.interface.temperature_coefficients
    assert found.interface == Interface(Converter(8, 3.0), Converter(noise=0.01, rate=1e6), 10, coefficients)
    assert replace(found, interface=old.interface) == old
    works("interface", "mine.json", "--out", "more.json", "--adc-bits", 12)
    assert load_device("more.json").interface == replace(found.interface, adc=Converter(12, noise=0.01, rate=1e6))
    assert "exists already" in refused("interface", "board-1", "--out", "mine.json")
    assert "1 to 24 bits, got 0" in refused("interface", "board-1", "--out", "bad.json", "--dac-bits", 0)
    assert "range above 0" in refused("interface", "board-1", "--out", "bad.json", "--adc-range", -1)
    assert "does not exist" in refused("interface", "board-9", "--out", "bad.json")


def test_devices_are_listed(works):
    printed = works("devices")
    for name in PRESETS:
        assert f" {name} " in printed
    assert "1.00%" in printed


def test_worst_case_bends_the_inverse_more_than_any_neighbour_and_many_others(shipped):
    """On the full circuit, both parts of a pair off alike; what is beyond first order is below a tenth of a percent."""
    board, program = shipped.board, shipped.program
    copy = load_device("worst-case").copies[0]
    gains, cells = {name: e.value for name, e in copy.gains.items()}, board.cells
    populated = [name for name in gains if name in program.values]
    worst = np.array(
        [gains[name] for name in populated] + [e.value for e in (*copy.temperatures, *copy.readout_gains)]
    )  # an inductor moves next to nothing
    limits = [*gains.values(), *(e.value for e in (*copy.temperatures, *copy.inductances, *copy.readout_gains))]
    assert np.allclose(np.abs(np.array(limits) - 1), TOLERANCE, atol=1e-14, rtol=0)
    assert [e.value for e in copy.readout_offsets] == [OFFSET] * 8
    inductances = {f"L{node}": e.value for c, e in zip(cells, copy.inductances, strict=True) for node in c.nodes}
    rng = np.random.default_rng(5)
    flips = worst + np.eye(len(worst)) * (2 * (1 - worst))
    tried = np.concatenate([[worst], flips, 1 + TOLERANCE * rng.choice([-1, 1], (300, len(worst)))])
    specimens = []
    for x in tried:
        values = dict(zip(populated, x[: len(populated)], strict=True))
        hot = dict(zip((node for c in cells for node in c.nodes), np.repeat(x[len(populated) : -8], 2), strict=True))
        own = {p.name: values[p.element] for p in board.parts if p.element in values}
        own |= {f"R{node}": value for node, value in hot.items()}
        specimens.append(replace(nominal_copy(board), gains=nominal_copy(board).gains | own | inductances))
    S = reading_covariances(assemble_gains(board, program, gains_of(board, specimens), Conditions()))
    S = tried[:, -8:, None] * S * tried[:, None, -8:]
    B = program.mapping.T @ S @ program.mapping * board.unit / (2 * program.energy)
    inverse = np.linalg.inv(program.target)
    along = np.einsum("kij,ij->k", B, inverse) / np.sum(inverse**2)
    bent = np.linalg.norm(B - along[:, None, None] * inverse, axis=(1, 2)) / np.linalg.norm(inverse)
    assert bent[0] > 0.02
    assert (bent[1 : 1 + len(worst)] < bent[0] + 1e-3).all()
    assert (bent[1 + len(worst) :] < 0.95 * bent[0]).all()


# --- prediction

WARM = {
    "plain": {},
    "differential": {"cells": "differential"},
    "banks": {"choices": BoardOptions(bank_bits=3)},
    "differential banks": {"cells": "differential", "choices": BoardOptions(bank_bits=2)},
    "resistive": {"choices": BoardOptions(coupling="resistive")},
    "resistive banks": {"choices": BoardOptions(coupling="resistive", bank_bits=3)},
}


@pytest.mark.parametrize("ambient", [-55.0, 27.0, 125.0])
@pytest.mark.parametrize("kind", WARM)
def test_a_nominal_copy_at_any_temperature_is_the_whole_circuit_there(kind, ambient):
    made = make_design(M_MATRIX, **WARM[kind])
    found = ideal_device(made.board).under(made.program, ambient=ambient)
    full = assemble(made.board, made.program, nominal_copy(made.board), Conditions(ambient))
    expected = reading_covariance(full)
    assert np.linalg.norm(found.covariance - expected) < 1e-9 * np.linalg.norm(expected)
    slowest = 1 / found.settling
    assert min(np.linalg.eigvals(found.drift).real) == pytest.approx(slowest, rel=1e-9)


def test_the_interface_has_the_last_word_on_coefficients():
    made = make_design(M_MATRIX)
    device = replace(ideal_device(made.board), interface=Interface(temperature_coefficients={"C": 1e-3, "I": 0.0}))
    cold, warm = (device.under(made.program, ambient=27.0 + kelvin).covariance for kelvin in (0.0, 40.0))
    # Resistors are the board's, 25 ppm: kT of a cell goes with R, C with its own.
    assert np.allclose(warm, cold * (1 + 25e-6 * 40) / (1 + 1e-3 * 40), rtol=1e-12)


def test_readout_and_converter_are_in_what_is_read():
    made = make_design(M_MATRIX)
    gains, offsets = np.array([1.01, 0.98, 1.002]), np.array([1e-3, -2e-3, 0.0])
    copy = ideal_device(made.board).copies[0]
    copy = replace(copy, readout_gains=estimates(*gains), readout_offsets=estimates(*offsets))
    device = replace(ideal_device(made.board), copies=(copy,))
    plain = reading_covariance(assemble(made.board, made.program, nominal_copy(made.board), Conditions()))
    found = device.under(made.program)
    expected = np.diag(gains) @ plain @ np.diag(gains)
    assert np.allclose(found.covariance, expected, rtol=1e-10)
    assert np.array_equal(found.mean, offsets)
    X = made.program.mapping
    assert np.allclose(found.inverse, X.T @ expected @ X * made.board.unit / made.program.energy, rtol=1e-10)
    adc = Converter(4, 2.0, noise=0.05, offset=0.1)
    read = replace(device, interface=Interface(adc=adc)).under(made.program)
    mean, law, clipped = converted_law(offsets, expected, adc, made.board.limits.reading_rms)
    assert np.allclose(read.covariance, law, rtol=1e-9)
    assert np.allclose(read.mean, mean, rtol=1e-9)
    assert np.allclose(read.clipped, clipped, rtol=1e-9)
    assert 0.01 < read.clipped.max() < 0.1
    assert not found.clipped.any()


def test_an_adc_that_is_slow_for_all_cells_skips_sampling_periods():
    made = make_design(M_MATRIX)
    device, period = ideal_device(made.board), made.program.period
    for rate, periods in ((None, 1), (1e3 / period, 1), (3 / period, 1), (2.9 / period, 2), (0.3 / period, 10)):
        slow = replace(device, interface=Interface(adc=Converter(rate=rate)))
        assert slow.under(made.program).interval == pytest.approx(periods * period)


def test_bias_goes_through_the_dac_and_what_it_clips_is_counted():
    made = make_design(M_MATRIX, choices=BoardOptions(coupling="resistive"))
    bias = np.array([1e-5, 3e-5, -0.2e-5])
    exact = ideal_device(made.board).under(made.program, bias=bias)
    X = made.program.mapping
    conductance = made.board.unit * X @ M_MATRIX @ X.T
    assert np.allclose(exact.mean, np.linalg.solve(conductance, bias), rtol=1e-10)
    assert exact.clipped_bias == 0
    interface = Interface(dac=Converter(5, 1.2, noise=0.01, offset=0.05))
    device = replace(ideal_device(made.board), interface=interface)
    found, again, other = (device.under(made.program, bias=bias, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(found.mean, again.mean)
    assert not np.array_equal(found.mean, other.mean)
    assert found.clipped_bias == 1
    rms = np.sqrt(np.mean(bias**2))
    step = 2 * 1.2 * rms / 32
    rounded = np.clip(np.round(bias / step), -16, 15) * step
    sent = conductance @ found.mean
    assert np.abs(sent - rounded - 0.05 * rms).max() < 6 * 0.01 * rms


def test_predictions_that_cannot_be_are_refused(shipped):
    device = ideal_device(shipped.board)
    for ambient in (-60.0, 126.0, np.nan):
        with pytest.raises(InputError, match="-55 to 125 °C"):
            device.under(shipped.program, ambient=ambient)
    with pytest.raises(InputError, match="coils of a capacitive board"):
        device.under(shipped.program, bias=np.ones(8))
    for bias in (np.ones(3), ["a"] * 8, np.full(8, np.nan)):
        with pytest.raises(InputError, match="expected 8 finite bias"):
            device.under(shipped.program, bias=bias)
    for given in ({"target": [[1, 2], [3]]}, {"target": np.eye(8), "precondition": [[1, 2], [3]]}):
        with pytest.raises(InputError, match="rows of different lengths"):
            device.program(**given)
    with pytest.raises(InputError, match="a seed is a whole number"):
        device.under(shipped.program, bias=np.ones(8), seed=-1)
    made = make_design(NEGATIVE, cells="active")
    away = ideal_device(made.board)
    away = first(away, gains=away.copies[0].gains | {"negative_1": Estimate(30.0, 0.0, True)})
    with pytest.raises(InputError, match="ideal-1 would run away"):
        away.under(made.program)


def test_a_preset_predicts_a_target_at_a_temperature(shipped):
    device = load_device("board-1")
    found = device.program(FAIR, precondition=FAIR_FACTOR, ambient=60.0)
    warm = reading_covariance(assemble(shipped.board, shipped.program, shipped.copies[0], Conditions(60.0)))
    assert np.linalg.norm(found.covariance - warm) < 2e-4 * np.linalg.norm(warm)
    inverse = np.linalg.inv(FAIR)
    assert 1e-3 < np.linalg.norm(found.inverse - inverse) / np.linalg.norm(inverse) < 0.02


# --- the spread of one element


def test_spread_of_an_element_is_that_of_the_known_couplings():
    device = load_device("board-2")
    known = [e for n, e in device.copies[0].gains.items() if n.startswith(("straight", "crossed")) and e.observed]
    found = element_spread(device)
    assert found.count == len(known) == 28
    values, errors = np.array([(e.value, e.standard_error) for e in known]).T
    assert found.mean == pytest.approx(values.mean())
    assert found.deviation == pytest.approx(np.sqrt(values.var(ddof=1) - np.mean(errors**2)))
    low, high = found.interval  # uniform ±1 %, mean of two parts
    assert low < 0.01 / np.sqrt(6) < high
    assert element_spread(load_device("ideal")).deviation == 0.0
    assert element_spread(load_device("worst-case")).deviation == pytest.approx(0.01, rel=0.02)


def test_an_uncertain_spread_is_drawn_with_a_seed():
    device = load_device("board-3")
    drawn = np.array([element_spread(device, seed).deviation for seed in range(400)])
    assert element_spread(device, 7).deviation == drawn[7]
    best = element_spread(device)
    # deviation² (n - 1)/χ²: the mean of its inverse is 1/deviation², to 0.27 √(1/400) of it
    assert np.mean(best.deviation**2 / drawn**2) == pytest.approx(1, abs=4.5 * np.sqrt(2 / 27 / 400))


def test_spread_of_banks_is_that_of_their_bits_and_needs_two_known():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=3), copies=1, tolerance=0.05)
    model = pair_model(made.board)
    theta = truth(model, made.copies[0])
    bits = [value for name, value in zip(model.names, theta, strict=True) if "_bit_" in name]
    device = ideal_device(made.board)
    gains = {
        n: Estimate(float(dict(zip(model.names, theta, strict=True))[n]), 0.0, True) for n in device.copies[0].gains
    }
    assert element_spread(first(device, gains=gains)).deviation == pytest.approx(np.std(bits, ddof=1))
    with pytest.raises(InputError, match="fewer than two"):
        element_spread(rough_device(0.01))
    assert element_spread(draw_device(rough_device(0.01), 0)).deviation > 0
    with pytest.raises(InputError, match="fewer than two"):
        element_spread(ideal_device(build_board(1, "plain")))


def test_fresh_copies_are_drawn_by_a_seed_and_kept_with_their_spreads(here, works, refused):
    printed = works("draw", "board-1", "--copies", 4, "--seed", 3, "--out", "four.json")
    made = load_device("four.json")
    assert [copy.name for copy in made.copies] == ["drawn-1", "drawn-2", "drawn-3", "drawn-4"]
    assert "negative" in printed
    assert "by tolerance" in printed
    works("draw", "board-1", "--copies", 4, "--seed", 3, "--out", "again.json")
    assert (here / "again.json").read_bytes() == (here / "four.json").read_bytes()
    assert "exists already" in refused("draw", "board-1", "--out", "four.json")
    assert "one board or more" in refused("draw", "board-1", "--copies", 0, "--out", "none.json")
    assert "observed no kind" in refused("draw", "ideal", "--out", "none.json")
    assert not (here / "none.json").exists()


def test_boards_that_would_run_away_are_not_drawn_into_a_file(here, refused):
    Q = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    made = make_design(Q @ np.diag([1.0, 0.05, 0.01]) @ Q.T, cells="active", tolerance=0.05)  # condition 100, raw
    device = replace(ideal_device(made.board, 2), values=made.program.values)
    names, cells = device.copies[0].gains, range(3)
    spread = []
    for copy, sign in zip(device.copies, (1, -1), strict=True):
        apart = [Estimate(1 + 0.05 * sign * (-1) ** k, 0.0, True) for k in range(len(names))]
        alike = tuple(Estimate(1 + 0.01 * sign * (-1) ** k, 0.0, True) for k in cells)
        gains = dict(zip(names, apart, strict=True))
        spread.append(replace(copy, gains=gains, temperatures=alike, inductances=alike))
    write_json(here / "rough.json", describe_device(replace(device, copies=tuple(spread))))
    said = refused("draw", "rough.json", "--copies", 200, "--out", "drawn.json")
    assert "of 200 copies drawn would run away" in said
