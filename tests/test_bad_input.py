"""Bad input: one sentence on standard error, exit code 2, and every file as it was."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_ngspice, tree

from circuits.files import write_json, write_npz
from circuits.model import describe_device, ideal_device
from circuits.synthesis import build_board
from tngd.pipeline import RunOptions, _content
from tngd.training.small_tasks import SCHEMA as TRAINING_SCHEMA

GOOD = np.array([[2.0, -1.0], [-1.0, 2.0]])
RANK_ONE = np.outer(np.arange(1, 9), np.arange(1, 9)).astype(float)
NUMBER = r"(\d[\d.e+-]*\d|\d)"
ROUTES = ("exact", "sampled")


@pytest.fixture
def board(here: Path, works: Callable[..., str]) -> Path:
    """A small design in the folder `board`, its target beside it."""
    np.save("good.npy", GOOD)
    works("design", "good.npy", "--out", "board")
    return here / "board"


@pytest.fixture
def simulator(fake_ngspice: Callable[[str], Path]) -> Callable[[str], Path]:
    """A program that says no version and then does what the script says."""
    return lambda script: fake_ngspice('[ "$1" = --version ] && exit 0\n' + script)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file, NaN allowed."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def number_after(option: str, sentence: str) -> str:
    return re.search(f"{option} {NUMBER}", sentence)[1]


def raw_file(*tables: np.ndarray, names: tuple[str, ...] = ("time", "v(v1)", "v(v2)")) -> bytes:
    """A binary raw file of ngspice, one plot for each table (points, names)."""
    content = b""
    for table in tables:
        kind = "complex" if np.iscomplexobj(table) else "real"
        variables = "".join(f"\t{k}\t{name}\tvoltage\n" for k, name in enumerate(names))
        head = f"Title: x\nDate: x\nPlotname: x\nFlags: {kind}\nNo. Variables: {len(names)}\nNo. Points: {len(table)}\n"
        content += f"{head}Variables:\n{variables}Binary:\n".encode() + table.tobytes()
    return content


def analyses(method: str, points: int = 500) -> list[np.ndarray]:
    """What ngspice writes for a board of two plain cells, in form: noise in the time domain, or two AC runs."""
    voltages = np.random.default_rng(0).normal(size=(points, 2))
    table = np.column_stack([np.arange(points) * 1e-7, voltages])
    return [table] if method == "sampled" else [table.astype(complex)] * 2


def with_entry(tables: list[np.ndarray], value: float) -> list[np.ndarray]:
    changed = tables[-1].copy()
    changed[3, 1] = value
    return [*tables[:-1], changed]


def device_file(path: Path, kind: str = "differential", cells: int = 8) -> Path:
    write_json(path, describe_device(ideal_device(build_board(cells, kind))))
    return path


class Trap:
    """What makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("hacked",)


# --- usage


@pytest.mark.parametrize(
    "argv",
    [
        ["bogus"],
        ["--bogus"],
        ["design"],
        ["design", "wine"],
        ["design", "wine", "--out"],
        ["design", "wine", "--out", "x", "--bogus", "1"],
        ["design", "wine", "--out", "x", "--copies", "many"],
        ["design", "wine", "wine", "--out", "x"],
        ["verify"],
        ["verify", "x", "--samples", "1.5"],
        ["calibrate"],
        ["train", "fair"],
        ["report"],
        ["run", "fair"],
        ["fisher", "fair"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_that_names_the_help(argv, refused):
    assert refused(*argv).endswith("see tngd --help")


def test_line_breaks_and_escapes_of_a_file_name_stay_out_of_the_sentence(refused):
    assert "a b [31m.npy does not exist" in refused("design", "a\nb\x1b[31m.npy", "--name", "x", "--out", "x")


# --- design: the target


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nothing", "unknown target 'nothing'"),
        ("nothing.npy", "does not exist"),
        ("nothing.csv", "does not exist"),
        ("matrix.txt", "unknown target"),
        ("matrix", "unknown target"),
        ("folder.npy", "not readable"),
        ("matrix.txt/x.npy", "not readable"),
        ("n" * 300 + "/x.npy", "not readable"),
    ],
)
def test_target_that_is_no_file_is_refused(target, says, here, refused):
    (here / "matrix.txt").write_text("1 0\n0 1\n")
    (here / "folder.npy").mkdir()
    assert says in refused("design", target, "--out", "x")


HUGE_HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999, 9999999), }".ljust(117) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("garbage.npy", bytes(range(256))),
        ("empty.npy", b""),
        ("header.npy", b"\x93NUMPY\x01\x00\x14\x00{'descr': ((((((((((("),
        ("huge.npy", b"\x93NUMPY\x01\x00\x76\x00" + HUGE_HEADER.encode()),
        ("zip.npy", b"PK\x03\x04" + bytes(100)),
        ("words.csv", b"one,two\nthree,four\n"),
        ("ragged.csv", b"1 2\n3\n"),
        ("bytes.csv", b"\xff\xfe\x00"),
    ],
)
def test_target_file_that_holds_no_matrix_is_refused(name, content, here, refused):
    (here / name).write_bytes(content)
    assert f"target {name} is not readable: " in refused("design", name, "--out", "x")


def test_truncated_matrix_file_is_refused(here, refused):
    np.save("cut.npy", GOOD)
    (here / "cut.npy").write_bytes((here / "cut.npy").read_bytes()[:-3])
    assert "not readable" in refused("design", "cut.npy", "--out", "x")


def test_pickled_objects_are_refused_and_never_unpickled(refused):
    np.save("trap.npy", np.array([[Trap()]]), allow_pickle=True)
    assert "not readable" in refused("design", "trap.npy", "--out", "x")
    np.save("good.npy", GOOD)
    assert "not readable" in refused("design", "good.npy", "--precondition", "trap.npy", "--out", "x")


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.zeros((0, 0)), "is empty"),
        (np.zeros((0, 3)), "is empty"),
        (np.ones((2, 3)), "must be square, got 2 x 3"),
        (np.array(1.0), "two dimensions"),
        (np.ones(4), "two dimensions"),
        (np.ones((2, 2, 2)), "two dimensions"),
        (GOOD + 0j, "must be real"),
        (np.array([[1, np.nan], [np.nan, 1]]), "must be finite, got nan in row 1, column 2"),
        (np.diag([1, np.inf]), "must be finite, got inf in row 2, column 2"),
        (np.array([["1", "0"], ["0", "1"]]), "must hold numbers"),
        (np.array([["2020-01-01"]], dtype="M8[D]"), "must hold numbers"),
        (np.zeros((2, 2), dtype=[("a", float)]), "must hold numbers"),
        (np.array([[2.0, 1.0], [0.0, 2.0]]), "must be symmetric, got 1 in row 1, column 2 but 0 across"),
        (np.array([[2.0, 1.0], [1.0 + 1e-6, 2.0]]), "must be symmetric"),
        (np.eye(65), "up to 64 x 64 are supported, got 65 x 65"),
        (-np.eye(2000), "up to 64 x 64 are supported, got 2000 x 2000"),
        (np.diag([1e308, 1e308]), "1e100"),
        (np.diag([1e-320, 1e-320]), "1e-100"),
        (np.array([[1, 1 - 3e-14], [1 - 3e-14, 1]]), "singular in double precision"),
    ],
)
def test_matrix_that_is_no_target_is_refused(matrix, says, refused):
    np.save("bad.npy", matrix)
    assert says in refused("design", "bad.npy", "--out", "x")


def test_empty_text_file_is_an_empty_matrix(here, refused):
    (here / "empty.csv").write_text("\n \n")
    assert "is empty" in refused("design", "empty.csv", "--out", "x")


@pytest.mark.parametrize(
    "matrix",
    [
        np.array([[1.0, 2.0], [2.0, 1.0]]),
        np.zeros((3, 3)),
        -123449 * np.eye(3),
        np.array([[0.0, 1.0], [1.0, 0.0]]),
        RANK_ONE,
        1e-30 * RANK_ONE,
        np.ones((5, 5)) - np.eye(5),
        np.diag([1.0, -1e-9]),
    ],
    ids=["indefinite", "zero", "negative", "no-diagonal", "rank-one", "tiny", "off-diagonal", "nearly"],
)
@pytest.mark.parametrize("options", [[], ["--cells", "active"], ["--copies", "20", "--tolerance", "0.1"]])
def test_target_that_is_not_definite_is_refused_with_a_damping_that_does(matrix, options, refused, works):
    np.save("bad.npy", matrix)
    sentence = refused("design", "bad.npy", "--out", "x", *options)
    smallest = float(re.search(r"smallest eigenvalue is (-?[\d.e+-]*\d)", sentence)[1])
    assert smallest == pytest.approx(np.linalg.eigvalsh(matrix)[0], rel=1e-3, abs=1e-12 * np.abs(matrix).max())
    works("design", "bad.npy", "--out", "x", *options, "--damping", number_after("--damping", sentence))


def test_damping_that_is_not_enough_is_refused_with_one_that_is(refused, works):
    np.save("bad.npy", -123449 * np.eye(3))
    sentence = refused("design", "bad.npy", "--out", "x", "--damping", "123400")
    assert "smallest eigenvalue is -49;" in sentence
    works("design", "bad.npy", "--out", "x", "--damping", number_after("--damping", sentence))


@pytest.mark.parametrize("matrix", [np.array([[3.0]]), GOOD, GOOD * [[1, 1 + 1e-12], [1, 1]], np.diag([1, 1e-13])])
def test_smallest_matrices_and_rounding_are_no_error(matrix, here, works):
    np.save("good.npy", matrix)
    works("design", "good.npy", "--out", "x")
    decks = [f"x/netlists/{name}.cir" for name in ("copy-1", "copy-2", "copy-3", "nominal")]
    assert {path for path in tree(here) if path.endswith(".cir")} == set(decks)
    assert {"x/board.json", "x/bom.csv", "x/board.net", "x/design.md", "x/schematic.svg"} <= tree(here).keys()
    target = json.loads((here / "x" / "board.json").read_text())["program"]["target"]
    np.testing.assert_array_equal(target, np.transpose(target))


@pytest.mark.parametrize("text", ["2,-1\n-1,2\n", "2 -1\n-1 2", " 2, -1\n\n-1,\t2e0\n"])
def test_text_matrix_with_commas_or_spaces_is_read(text, here, works):
    (here / "good.csv").write_text(text)
    works("design", "good.csv", "--out", "x")
    assert json.loads((here / "x" / "board.json").read_text())["program"]["target"] == GOOD.tolist()


# --- design: options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--copies", "0"], "--copies 0"),
        (["--copies", "-3"], "--copies -3"),
        (["--tolerance", "1.5"], "tolerance"),
        (["--tolerance", "-0.1"], "tolerance"),
        (["--tolerance", "nan"], "tolerance"),
        (["--tolerance", "inf"], "tolerance"),
        (["--seed", "-1"], "seed"),
        (["--damping", "-1"], "damping"),
        (["--damping", "nan"], "damping"),
        (["--damping", "inf"], "damping"),
        (["--cells", "bogus"], "--cells is one of auto"),
        (["--at", "bogus"], "--at zero or fit"),
        (["--precondition", "bogus"], "must be a .npy or .csv file"),
        (["--precondition", "bogus.npy"], "does not exist"),
    ],
    ids=" ".join,
)
def test_option_out_of_range_is_refused(options, says, refused):
    assert says in refused("design", "wine", "--out", "x", *options)


@pytest.mark.parametrize(
    ("T", "says"),
    [
        (np.eye(3), "must be 2 x 2 like the target, got 3 x 3"),
        (np.ones((2, 2)), "must be invertible"),
        (np.zeros((2, 2)), "must be invertible"),
        (np.diag([1, np.nan]), "must be finite"),
        (np.ones((2, 3)), "must be square"),
        (np.eye(2) * 1j, "must be real"),
        (np.eye(2) * 1e200, "1e100"),
    ],
)
def test_matrix_that_is_no_preconditioner_is_refused(T, says, refused):
    np.save("good.npy", GOOD)
    np.save("T.npy", T)
    sentence = refused("design", "good.npy", "--precondition", "T.npy", "--out", "x")
    assert sentence.startswith("preconditioner")
    assert says in sentence


@pytest.mark.parametrize("at", ["zero", "fit"])
def test_factor_by_name_needs_a_target_by_name(at, refused):
    np.save("good.npy", GOOD)
    assert "goes with a named target" in refused("design", "good.npy", "--precondition", at, "--out", "x")


HOSTILE = [
    "x\n.control\nshell touch hacked\n.endc",
    "x\r.control",
    "../x",
    "/tmp/x",
    "x/y",
    "x;touch hacked",
    "`touch hacked`",
    "$(touch hacked)",
    "'x'",
    '"x"',
    "x y",
    "x\n",
    "\x00x",
    ".x",
    "-x",
    "é",
    "",
    "x" * 65,
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_name_that_could_reach_a_shell_or_another_folder_is_refused(name, refused):
    assert "a name is 1 to 64 letters" in refused("design", "wine", "--out", "x", f"--name={name}")


@pytest.mark.parametrize("stem", ["a\n.control", "a;b", "`a`", "a b", "x" * 65], ids=ascii)
def test_file_name_that_could_reach_a_shell_needs_another_name(stem, here, refused, works):
    np.save(here / f"{stem}.npy", GOOD)
    assert "choose another --name" in refused("design", f"{stem}.npy", "--out", "x")
    works("design", f"{stem}.npy", "--out", "x", "--name", "safe")
    decks = "".join(path.read_text() for path in (here / "x" / "netlists").iterdir())
    assert stem not in decks
    assert decks.count(".control") == 4


def test_file_name_that_is_no_text_is_no_error(here, works, refused):
    name = os.fsdecode(b"\xff.npy")
    np.save(here / name, GOOD)
    assert "choose another --name" in refused("design", name, "--out", "x")
    works("design", name, "--out", os.fsdecode(b"\xfe"), "--name", "safe")


@pytest.mark.parametrize("options", [[], ["--cells", "active"], ["--damping", "1e-7"]], ids=" ".join)
def test_hopeless_copies_are_refused_with_suggestions_that_each_work_alone(options, refused, works):
    given = ["design", "breast-cancer", "--at", "fit", "--seed", "0", *options]
    sentence = refused(*given, "--out", "x")
    assert re.search(r"\d+% of the copies hold this target", sentence)
    assert "precondition" in sentence
    works(*given, "--tolerance", number_after("--tolerance", sentence), "--out", "tolerance")
    works(*given, "--damping", number_after("--damping", sentence), "--out", "damping")
    works(*given, "--precondition", "zero", "--out", "precondition")


# --- design: the folder


def test_existing_run_folder_is_replaced_by_force_alone(board, refused, works):
    (board / "verification.json").write_text("{}")
    before = tree(board)
    assert "exists already" in refused("design", "good.npy", "--out", "board", "--seed", "1")
    works("design", "good.npy", "--out", "board", "--seed", "1", "--force")
    after = tree(board)
    assert "verification.json" not in after
    assert set(after) == set(before) - {"verification.json"}
    assert after["netlists/copy-1.cir"] != before["netlists/copy-1.cir"]


def test_damaged_run_folder_is_replaced_by_force(board, works):
    whole = (board / "board.json").read_bytes()
    (board / "board.json").write_bytes(whole[: len(whole) // 2])
    works("design", "good.npy", "--out", "board", "--force")
    assert (board / "board.json").read_bytes() == whole


def test_refused_design_keeps_the_folder_it_was_to_replace(board, refused):
    refused("design", "good.npy", "--out", "board", "--force", "--copies", "0")
    refused("design", "breast-cancer", "--at", "fit", "--out", "board", "--force")


@pytest.mark.parametrize("file", ["thesis.tex", "board.json", ".hidden", "board.json/thesis.tex"])
def test_folder_that_is_no_run_folder_is_never_replaced(file, here, refused):
    np.save("good.npy", GOOD)
    (here / "mine" / file).parent.mkdir(parents=True)
    (here / "mine" / file).write_text('{"mine": 1}')
    for force in ([], ["--force"]):
        assert "exists" in refused("design", "good.npy", "--out", "mine", *force)


def test_output_that_cannot_be_a_folder_is_refused(here, refused):
    np.save("good.npy", GOOD)
    (here / "file").write_text("mine")
    for out in ("file", "file/run", "file/a/run"):
        for force in ([], ["--force"]):
            assert "file" in refused("design", "good.npy", "--out", out, *force)
    assert "too long" in refused("design", "good.npy", "--out", "x" * 300)


def test_link_is_never_followed_to_what_it_replaces(board, here, refused):
    (here / "link").symlink_to("board")
    refused("design", "good.npy", "--out", "link", "--force")
    assert (here / "link").is_symlink()


# --- fisher


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nothing", "--out", "x.npy"], "unknown data set"),
        (["wine", "--out", "x.npy", "--at", "bogus"], "--at zero or fit"),
        (["wine", "--out", "x.csv"], "written as .npy"),
        (["wine", "--out", "x.npy", "--factor", "x.csv"], "written as .npy"),
        (["wine", "--out", "x.npy", "--factor", "x.npy"], "cannot both be"),
        (["wine", "--out", "mine.npy"], "exists already"),
        (["wine", "--out", "x.npy", "--factor", "mine.npy"], "exists already"),
        (["wine", "--out", "about.npy"], "exists already"),
        (["wine", "--out", "mine.npy/x.npy"], "is a file"),
        (["wine", "--out", "x.npy", "--factor", "mine.npy/x.npy"], "is a file"),
    ],
)
def test_fisher_matrix_that_cannot_be_written_is_refused(argv, says, here, refused):
    (here / "mine.npy").write_text("mine")
    (here / "about.json").write_text("mine")
    assert says in refused("fisher", *argv)


# --- verify


VERBS = [["verify"], ["calibrate"]]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_folder_without_a_board_is_refused(verb, here, refused):
    (here / "empty").mkdir()
    (here / "file").write_text("mine")
    for folder in ("missing", "empty", "file"):
        assert "tngd design" in refused(*verb, folder)


DAMAGE = {
    "schema": lambda content: content.update(schema="tngd.board/0"),
    "missing key": lambda content: content.pop("copies"),
    "missing nested key": lambda content: content["program"].pop("period"),
    "NaN in the target": lambda content: content["program"].update(target=[[1, np.nan], [np.nan, 1]]),
    "NaN in a gain": lambda content: content["copies"][0]["gains"].update(Rv1=np.nan),
    "target of another size": lambda content: content["program"].update(target=[[1.0]]),
    "ragged target": lambda content: content["program"].update(target=[[1.0, 0.0], [1.0]]),
    "word for a number": lambda content: content["program"].update(energy="much"),
    "negative energy": lambda content: content["program"].update(energy=-1.0),
    "no values": lambda content: content["program"].update(values={}),
    "no copies": lambda content: content.update(copies=[]),
    "copy without gains": lambda content: content["copies"][0].update(gains={}),
    "copy elsewhere": lambda content: content["copies"][0].update(name="../../copy-1"),
    "hostile source": lambda content: content["board"]["sources"][0].update(name="I\nshell touch hacked\n"),
    "no parts": lambda content: content["board"].update(parts=[]),
    "list for an object": lambda content: content.update(provenance=[]),
    "seed": lambda content: content["provenance"].update(seed="first"),
    "another tolerance": lambda content: content.update(tolerance=0.02),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_edited_board_is_refused(damage, board, refused):
    edit(board / "board.json", DAMAGE[damage])
    for verb in VERBS:
        assert re.search("damaged|was changed|does not say schema", refused(*verb, "board"))


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "null", '{"schema": ', "\x00", "[" * 100_000], ids=ascii)
def test_board_file_that_is_no_record_is_refused(text, board, refused):
    (board / "board.json").write_text(text)
    for verb in (*VERBS, ["report"]):
        assert "board.json" in refused(*verb, "board")


def test_truncated_board_is_refused(board, refused):
    whole = (board / "board.json").read_text()
    for broken in (whole[: len(whole) // 2], "[" * 100_000, '{"schema": ' + "1" * 5000 + "}"):
        (board / "board.json").write_text(broken)
        assert "not readable JSON" in refused("verify", "board")


def test_edited_or_missing_netlist_is_refused(board, refused):
    deck = board / "netlists" / "copy-2.cir"
    text = deck.read_text()
    for changed in (text.replace("R", "r", 1), text + "\n", ".control\nshell touch hacked\n.endc\n" + text, ""):
        deck.write_text(changed)
        assert "copy-2.cir was changed" in refused("verify", "board")
    deck.write_bytes(b"\xff\xfe")
    assert "copy-2.cir" in refused("verify", "board")
    deck.unlink()
    assert "copy-2.cir is missing" in refused("verify", "board")


@pytest.mark.parametrize("file", ["verification.json", "statistics.npz"])
def test_existing_verification_is_kept(file, board, refused):
    (board / file).write_text("mine")
    assert f"{file} exists already" in refused("verify", "board")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "bogus"], "--method is exact, sampled or both"),
        (["--samples", "0"], "--samples is from 500"),
        (["--samples", "-500"], "--samples is from 500"),
        (["--samples", "1000000000000"], "--samples is from 500 to 100000000"),
        (["--seed", "-1"], "a seed is"),
        (["--ambient", "200"], "--ambient is from -55 to 125 °C, got 200"),
        (["--ambient", "nan"], "--ambient is from -55 to 125 °C, got nan"),
        (["--copies", "2"], "--copies is from 3 to 100000"),
        (["--target-error", "0"], "--target-error is a relative error above 0"),
        (["--target-error", "1e-9"], "--target-error 0.00026 would do"),
        (["--bound", "inf"], "--bound is a relative error above 0"),
        (["--measured", "none.csv"], "none.csv"),
        (["--target-error", "1e-200"], "takes more than 100,000,000 readings a copy"),
        (["--measured", "none.csv", "--charge"], "need no --charge"),
    ],
    ids=" ".join,
)
def test_verification_out_of_range_is_refused(options, says, board, refused):
    assert says in refused("verify", "board", *options)


# --- verify: broken simulators


@pytest.mark.parametrize("method", [*ROUTES, "both"])
def test_missing_simulator_is_refused_with_how_to_get_it(method, board, no_ngspice, refused):
    assert "ngspice was not found; install it" in refused("verify", "board", "--method", method)


SCRIPTS = {
    "crash": ("kill -SEGV $$", "crashed with signal 11"),
    "nothing": ("exit 0", "wrote no result"),
    "error": ("echo 'Error: no such model' >&2; exit 1", "it said: Error: no such model"),
    "error and code 0": ("echo 'doAnalyses: TRAN: timestep too small'; exit 0", "timestep too small"),
    "bytes": (r"printf '\377\033[31mred\n'; exit 1", "wrote no result"),
    "another file": ("echo x > other.raw", "wrote no result"),
}


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("case", SCRIPTS)
def test_simulator_that_fails_is_refused_in_its_own_words(case, method, board, simulator, refused):
    script, says = SCRIPTS[case]
    simulator(script)
    assert says in refused("verify", "board", "--method", method, "--samples", "500")


@pytest.mark.parametrize("method", ROUTES)
def test_simulator_that_hangs_is_stopped(method, board, simulator, refused, monkeypatch):
    monkeypatch.setattr("circuits.simulation.ngspice.TIMEOUT", 0.2)
    simulator("exec sleep 60")
    assert "did not finish within 0.2 s" in refused("verify", "board", "--method", method, "--samples", "500")


def test_simulator_that_is_too_old_is_refused(board, fake_ngspice, refused):
    fake_ngspice("echo '** ngspice-28 : Circuit level simulation program'; exit 0")
    assert "ngspice 28 is too old: its noise follows no seed; install ngspice 29 or newer" in refused("verify", "board")


def test_program_that_is_no_simulator_is_refused(board, fake_ngspice, refused):
    fake_ngspice("").write_bytes(b"\x00\x01\x02")
    assert "could not be started" in refused("verify", "board")


RAW_FILES = {
    "truncated": (lambda method: raw_file(*analyses(method))[:-5], "truncated"),
    "cut in the header": (lambda method: raw_file(*analyses(method))[:70], "ends inside a header"),
    "cut in the second header": (lambda method: raw_file(*analyses(method)) + b"Title: x\n", "ends inside a header"),
    "garbage": (lambda method: np.random.default_rng(0).bytes(4096), "ends inside a header"),
    "garbage after a header": (lambda method: b"Title: x\nBinary:\n" + bytes(99), "without a readable header"),
    "empty": (lambda method: b"", "wrote 0 of "),
    "no points": (lambda method: raw_file(*analyses(method, points=0)), "truncated"),
    "not a number": (lambda method: raw_file(*with_entry(analyses(method), np.nan)), "not finite"),
    "infinite": (lambda method: raw_file(*with_entry(analyses(method), -np.inf)), "not finite"),
    "huge": (lambda method: raw_file(*with_entry(analyses(method), 1e300)), "not finite"),
    "zeros": (lambda method: raw_file(*(0 * table for table in analyses(method))), "nothing but zeros"),
    "a node missing": (lambda method: raw_file(*analyses(method), names=("time", "v(v1)", "v(x)")), r"lacks v\(v2\)"),
    "one too few": (lambda method: raw_file(*analyses(method)[1:]), "analyses"),
    "one too many": (lambda method: raw_file(*analyses(method), *analyses(method)), "analyses"),
    "too short": (lambda method: raw_file(*analyses(method, points=400)), "ngspice stopped"),
    "another grid": (lambda method: raw_file(*analyses(method)), "ngspice stopped inside|not on the sampling grid"),
}


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("case", RAW_FILES)
def test_result_that_is_not_whole_is_refused(case, method, board, simulator, refused, tmp_path):
    content, says = RAW_FILES[case]
    prepared = tmp_path / "prepared.raw"
    prepared.write_bytes(content(method))
    simulator(f"cp '{prepared}' exact.raw; cp '{prepared}' chunk.raw")
    assert re.search(says, refused("verify", "board", "--method", method, "--samples", "500"))


@needs_ngspice
def test_damaged_chunk_of_a_stopped_run_is_measured_again(board, here, simulator, tngd, works):
    real = shutil.which("ngspice")
    shutil.copytree(board, here / "fresh")
    simulator(f'grep -qs copy-3 deck.cir && exit 1\nexec {real} "$@"')
    verify = ("verify", "--method", "sampled", "--samples", "500")
    assert tngd(*verify, "board")[0] == 2
    assert not (board / "statistics.npz").exists()
    chunks = list((board / "chunks").iterdir())
    assert chunks
    for chunk in chunks:
        chunk.write_bytes(b"damaged")
    simulator(f'exec {real} "$@"')
    works(*verify, "board")
    works(*verify, "fresh")
    assert (board / "statistics.npz").read_bytes() == (here / "fresh" / "statistics.npz").read_bytes()


# --- calibrate


def pretend_verified(board: Path, n: int = 2, **arrays: np.ndarray) -> None:
    """Write measurements of the right form to a design, `arrays` instead of the right ones."""
    right = {
        "covariance": np.eye(n),
        "integration_error": np.array(0.0),
        "frequencies": np.array([1e6, 2e6]),
        "spectra": np.stack([np.eye(n)] * 2).astype(complex),
    }
    kept = {key: value for key, value in (right | arrays).items() if value is not None}
    names = ("nominal", "copy-1", "copy-2", "copy-3")
    write_npz(board / "statistics.npz", **{f"{name}/{key}": value for name in names for key, value in kept.items()})
    write_json(board / "verification.json", {"ambient": 27.0, "provenance": {"ngspice": "0"}})


def test_calibration_needs_a_verification(board, refused):
    assert "tngd verify" in refused("calibrate", "board")
    pretend_verified(board)
    (board / "verification.json").unlink()
    assert "tngd verify" in refused("calibrate", "board")
    (board / "verification.json").write_text("[]")
    assert "tngd verify --force" in refused("calibrate", "board")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" + bytes(99)], ids=ascii)
def test_statistics_that_are_not_readable_are_refused(content, board, refused):
    pretend_verified(board)
    (board / "statistics.npz").write_bytes(content)
    assert "statistics.npz is not readable" in refused("calibrate", "board")


def test_statistics_that_are_cut_changed_or_one_array_are_refused(board, refused):
    pretend_verified(board)
    whole = (board / "statistics.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 255
    (board / "array.npy").touch()
    np.save(board / "array.npy", GOOD)
    for content in (whole[: len(whole) // 2], bytes(flipped), (board / "array.npy").read_bytes()):
        (board / "statistics.npz").write_bytes(content)
        assert "statistics.npz is not readable" in refused("calibrate", "board")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"n": 3}, "another design"),
        ({"covariance": np.eye(3)}, "another design"),
        ({"covariance": np.ones(2)}, "another design"),
        ({"spectra": None}, "another design"),
        ({"moments": np.ones((4, 3, 3))}, "another design"),
        ({"covariance": np.diag([1, np.nan])}, "not finite"),
        ({"covariance": None}, "has no sampled run"),
    ],
)
def test_statistics_that_do_not_fit_the_board_are_refused(arrays, says, board, refused):
    pretend_verified(board, **arrays)
    assert says in refused("calibrate", "board")


def test_unknown_route_and_existing_device_are_refused(board, refused):
    assert "--route is auto, exact, sampled or programs" in refused("calibrate", "board", "--route", "bogus")
    (board / "device.json").write_text("mine")
    assert "device.json exists already" in refused("calibrate", "board")


@needs_ngspice
def test_route_that_was_not_run_is_refused(board, refused, works):
    works("verify", "board", "--method", "exact")
    sentence = refused("calibrate", "board", "--route", "sampled")
    assert "has no sampled run; make it with `tngd verify --method sampled --force`" in sentence
    works("calibrate", "board")
    assert "device.json exists already" in refused("calibrate", "board")


def test_calibration_seed_below_zero_is_refused(board, refused):
    assert "a seed is a whole number >= 0, got -1" in refused("calibrate", "board", "--seed", "-1")


@pytest.mark.parametrize("route", ["auto", "exact", "sampled"])
def test_samples_that_no_run_would_take_are_refused(route, board, refused):
    sentence = refused("calibrate", "board", "--route", route, "--samples", "5000")
    assert "leave out --samples here, or give --route programs" in sentence


@needs_ngspice
def test_order_that_is_too_low_is_refused_or_warned_of(board, refused, works, tngd):
    works("verify", "board", "--method", "exact")
    assert "--order is from 2 (the readings) to 4 (all states), got 1" in refused("calibrate", "board", "--order", "1")
    assert "--order is from 2 (the readings) to 4 (all states), got 5" in refused("calibrate", "board", "--order", "5")
    code, _, err = tngd("calibrate", "board", "--order", "2")
    assert code == 0
    assert re.search(
        r"^warning: a process of 2 of 4 states is off by \S+, more than the .* uncertainty of \S+;", err, re.M
    )
    assert json.loads((board / "device.json").read_text())["order"] == 2
    code, _, err = tngd("calibrate", "board", "--force")
    assert (code, err) == (0, "")


# --- train


def test_unknown_task_and_missing_device_are_refused(here, refused):
    device = device_file(here / "device.json")
    assert "unknown task" in refused("train", "bogus", "--device", device)
    assert "tngd calibrate" in refused("train", "fair", "--device", "missing.json")


DEVICE_DAMAGE = {
    "schema": lambda device: device.update(schema="tngd.device/0"),
    "no board": lambda device: device.pop("board"),
    "no copies": lambda device: device.update(copies=[]),
    "negative gain": lambda device: device["copies"][0]["gains"]["ground_1"].update(value=-1.0),
    "infinite gain": lambda device: device["copies"][0]["gains"]["ground_1"].update(value=np.inf),
    "NaN error": lambda device: device["copies"][0]["gains"]["ground_1"].update(standard_error=np.nan),
    "another gain": lambda device: device["copies"][0]["gains"]["ground_1"].update(value=1.01),
    "element missing": lambda device: device["copies"][0]["gains"].pop("ground_1"),
    "temperature missing": lambda device: device["copies"][0]["temperatures"].pop(),
    "another resistor": lambda device: device["board"]["parts"][0].update(nominal=50.0),
    "resistors missing": lambda device: device["board"].update(parts=[]),
    "kind": lambda device: device["board"].update(kind="plain"),
    "element of the board missing": lambda device: device["board"]["elements"].pop(),
    "seal missing": lambda device: device.pop("device_sha256"),
    "list for an object": lambda device: device.update(fitted_on=[1]),
}


@pytest.mark.parametrize("damage", DEVICE_DAMAGE)
def test_edited_device_is_refused(damage, here, refused):
    edit(device_file(here / "device.json"), DEVICE_DAMAGE[damage])
    assert "make it again with `tngd calibrate`" in refused("train", "fair", "--device", "device.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "not JSON", "\x00"], ids=ascii)
def test_device_file_that_is_no_record_is_refused(text, here, refused):
    (here / "device.json").write_text(text)
    assert "make it again with `tngd calibrate`" in refused("train", "fair", "--device", "device.json")


@pytest.mark.parametrize(
    ("kind", "cells", "says"), [("plain", 8, "--cells active"), ("differential", 2, "has 2 cells")]
)
def test_device_that_holds_no_tile_is_refused(kind, cells, says, here, refused):
    device_file(here / "device.json", kind, cells)
    assert says in refused("train", "fair", "--device", "device.json")


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--seeds", "-1"], ["--steps", "0"], ["--steps", "-5"]])
def test_training_of_no_length_is_refused(options, here, refused):
    device_file(here / "device.json")
    assert "at least one seed and one step" in refused("train", "fair", "--device", "device.json", *options)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"schema": "tngd.training/0", "tasks": {}}, "does not say schema"),
        ({"schema": TRAINING_SCHEMA}, "does not say schema"),
        ({"schema": TRAINING_SCHEMA, "tasks": ["fair"]}, "does not say schema"),
        ([], "does not say schema"),
        ({"schema": TRAINING_SCHEMA, "tasks": {"fair": {}}}, "holds fair already; give --force"),
    ],
)
def test_training_file_is_never_overwritten_by_accident(content, says, here, refused):
    device_file(here / "device.json")
    write_json(here / "training.json", content)
    assert says in refused("train", "fair", "--device", "device.json")
    (here / "training.json").rename("elsewhere.json")
    assert says in refused("train", "fair", "--device", "device.json", "--out", "elsewhere.json")


def test_training_result_that_cannot_be_written_is_refused_before_the_training(here, refused):
    device_file(here / "device.json")
    (here / "folder").mkdir()
    assert "is a file" in refused("train", "fair", "--device", "device.json", "--out", "device.json/training.json")
    assert "folder" in refused("train", "fair", "--device", "device.json", "--out", "folder")
    assert "device.json does not say" in refused("train", "fair", "--device", "device.json", "--out", "device.json")


# --- report


def test_report_needs_a_board(here, refused):
    (here / "empty").mkdir()
    (here / "file").write_text("mine")
    for folder in ("missing", "empty", "file"):
        assert "tngd design" in refused("report", folder)


def test_existing_report_is_replaced_by_force_alone(board, refused, works):
    (board / "report.html").write_text("mine")
    assert "report.html exists already" in refused("report", "board")
    works("report", "board", "--force")
    assert "<h1>" in (board / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("board.json", '{"schema": "tngd.board/1"}'),
        ("verification.json", "{}"),
        ("verification.json", "["),
        ("verification.json", '{"schema": "tngd.verification/1"}'),
        ("device.json", "[]"),
        ("device.json", '{"schema": "tngd.device/1", "copies": 3}'),
        ("training.json", "{}"),
        ("training.json", '{"tasks": {"fair": {}}}'),
        ("x-refused.json", "[]"),
    ],
)
def test_report_of_damaged_results_is_refused(file, text, board, refused):
    (board / file).write_text(text)
    refused("report", "board")


@needs_ngspice
@pytest.mark.parametrize("name", ["$x^$ [b] :smile: <i>", "-x", "_x", "板"])
def test_folder_of_any_name_is_verified_and_reported(name, board, here, works):
    board.rename(here / name)
    assert name in works("verify", "--method", "exact", "--", name)
    works("report", "--", name)
    assert "<i>" not in (here / name / "report.html").read_text()


@pytest.mark.parametrize("matrix", [np.eye(3), np.diag([1, 1e-13])])
def test_report_of_equal_parts_is_drawn_without_a_warning(matrix, works):
    np.save("equal.npy", matrix)
    works("design", "equal.npy", "--out", "x")
    works("report", "x")


@needs_ngspice
def test_report_takes_any_number_of_boards(board, here, works):
    works("verify", "board", "--method", "exact")
    for k in range(8):
        shutil.copytree(board, here / "all" / f"board-{k}")
    works("report", "all")


# --- run


@pytest.fixture
def finished(here: Path, simulator: Callable[[str], Path]) -> Path:
    """A folder that looks like a finished run, and a simulator that must never be needed."""
    simulator("exit 1")
    write_json(here / "run" / "run.json", _content(RunOptions("fair"), finished=True))
    (here / "run" / "report.html").write_text("the work of a night")
    return here / "run"


def test_unknown_data_set_is_refused(finished, refused):
    assert "unknown data set 'bogus'" in refused("run", "bogus", "--out", "x")
    assert "unknown data set 'bogus'" in refused("run", "bogus", "--out", "run", "--force")


def test_finished_or_other_run_is_kept_without_force(finished, refused):
    assert "is finished" in refused("run", "fair", "--out", "run")
    write_json(finished / "run.json", _content(RunOptions("fair"), finished=False))
    assert "other options" in refused("run", "fair", "--out", "run", "--seed", "1")


@pytest.mark.parametrize(
    "options",
    [
        ["--copies", "0"],
        ["--tolerance", "nan"],
        ["--tolerance", "1"],
        ["--seed", "-1"],
        ["--samples", "0"],
        ["--samples", "1000000000000"],
        ["--seeds", "0"],
    ],
    ids=" ".join,
)
def test_run_with_a_bad_option_keeps_the_run_it_was_to_replace(options, finished, refused):
    refused("run", "fair", "--out", "run", "--force", *options)
    refused("run", "fair", "--out", "new", *options)


def test_run_without_a_simulator_keeps_the_run_it_was_to_replace(finished, no_ngspice, refused):
    assert "ngspice was not found" in refused("run", "fair", "--out", "run", "--force")


@pytest.mark.parametrize("file", ["thesis.tex", "run.json", "board.json", ".hidden"])
def test_folder_that_is_no_run_is_never_replaced(file, here, simulator, refused):
    simulator("exit 1")
    (here / "mine").mkdir()
    (here / "mine" / file).write_text('{"finished": true}')
    for force in ([], ["--force"]):
        assert "is not a run of this tool" in refused("run", "fair", "--out", "mine", *force)


def test_run_that_cannot_be_written_is_refused(here, simulator, refused):
    simulator("exit 1")
    (here / "file").write_text("mine")
    for out in ("file", "file/run"):
        for force in ([], ["--force"]):
            assert "file" in refused("run", "fair", "--out", out, *force)


def test_damaged_record_of_a_run_is_refused(finished, refused):
    (finished / "run.json").write_text((finished / "run.json").read_text()[:60])
    assert "run.json is not readable JSON" in refused("run", "fair", "--out", "run")


def test_run_whose_simulator_fails_ends_in_one_sentence_and_keeps_what_was_done(here, simulator, tngd):
    simulator("exit 0")
    code, out, err = tngd("run", "fair", "--out", "run", "--samples", "500")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("tngd: ngspice wrote no result")
    assert err.count("tngd: ") == 1
    assert not json.loads((here / "run" / "run.json").read_text())["finished"]
    assert not list((here / "run").rglob("verification.json"))
