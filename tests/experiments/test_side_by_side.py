"""Pieces of a run in processes of their own: order, errors, what an interruption leaves running, a stage asked for twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.side_by_side import Piece, checked_jobs, shared, side_by_side
from experiments.stages import Stages
from ngdiff.errors import UserError
from ngdiff.machine import peak_memory_mib
from ngdiff.progress import Progress

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pieces do not go side by side on Windows")
QUIET = Progress(Console(quiet=True))


@pytest.fixture
def six_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


class Unsendable(Exception):
    """An error that another process cannot read: it is made from its one text, and wants two."""

    def __init__(self, what: str, why: str):
        super().__init__(f"{what} {why}")


class Run:
    """A run whose pieces leave files."""

    def __init__(self, folder: Path, progress: Progress):
        self.folder, self.progress = folder, progress

    def leave(self, name: str, wanted: str = "", seconds: float = 0) -> None:
        with self.progress.task(f"leave-{name}") as on_step:
            on_step(1, 2)
            time.sleep(seconds)
        assert not wanted or (self.folder / wanted).is_file()
        (self.folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")

    def meet(self, name: str, other: str) -> None:
        """Ends only if another piece begins before this one has ended."""
        (self.folder / name).touch()
        for _ in range(600):
            if (self.folder / other).exists():
                return
            time.sleep(0.1)
        raise UserError("the other piece never came")

    def fail(self, seconds: float = 0) -> None:
        time.sleep(seconds)
        raise UserError("row 7: found none; give some")

    def break_down(self) -> None:
        raise Unsendable("a cause", "and more")

    def tell(self) -> None:
        with self.progress.task("tell") as on_step:
            for step in range(5000):  # more than a pipe holds
                on_step(step, 5000)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self) -> None:
        (self.folder / str(os.getpid())).touch()
        time.sleep(600)

    def stage(self, piece: int) -> None:
        def compute(folder: Path) -> None:
            (folder / "by").write_text(str(piece))
            (self.folder / f"computed-{piece}").touch()
            time.sleep(1)

        Stages(self.folder / "stages", {}).run("one", {"for": "all"}, compute)


def go(folder: Path, *phases: list[Piece], jobs: int = 2, progress: Progress = QUIET) -> None:
    side_by_side(partial(Run, folder), phases, jobs, progress)


def test_a_phase_begins_when_all_of_the_one_before_has_ended(tmp_path: Path) -> None:
    go(tmp_path, [("leave", "slow", "", 2), ("leave", "fast")], [("leave", "c", "slow"), ("leave", "d", "slow")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d", "fast", "slow"]


def test_processes_share_the_threads(tmp_path: Path, six_threads: None) -> None:
    go(tmp_path, [("leave", "a"), ("leave", "b")])
    for path in tmp_path.iterdir():
        process, threads = path.read_text().split()
        assert process != str(os.getpid())
        assert threads == "3"


def test_pieces_of_a_phase_go_side_by_side(tmp_path: Path) -> None:
    go(tmp_path, [("meet", "a", "b"), ("meet", "b", "a")])  # raises if one waits for the other in vain
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_is_done_is_shown_by_the_process_that_was_asked(tmp_path: Path) -> None:
    shown = StringIO()
    go(tmp_path, [("leave", "a"), ("leave", "b")], progress=Progress(Console(file=shown, width=80)))
    lines = sorted(shown.getvalue().splitlines())
    assert [line.split()[0] for line in lines] == ["leave-a", "leave-b"]
    assert all(line.endswith(" s") for line in lines)


def test_on_a_terminal_each_worker_has_a_bar_while_it_works() -> None:
    shown = StringIO()
    with Progress(Console(file=shown, width=100, force_terminal=True)).several() as show:
        show(1, "train-a", 3, 10, None)
        show(2, "train-b", 4, 10, None)
        until(lambda: "3/10" in shown.getvalue())
        show(1, "train-a", None, None, 2.5)
        show(2, "train-b", 5, 10, None)
    before, line, after = shown.getvalue().rpartition(f"{'train-a':<40}    2.5 s")
    assert "3/10" in before
    assert line
    last = after[: after.rindex("5/10")].rpartition("\x1b[2K")[2]  # drawn where the bars before were erased
    assert "train-b" in last
    assert "train-a" not in last


def test_an_error_of_a_piece_is_that_of_the_run_and_nothing_is_begun_after_it(tmp_path: Path) -> None:
    rest = [("leave", f"late-{i}", "", 2) for i in range(8)]
    with pytest.raises(UserError, match=r"^row 7: found none; give some$"):
        go(tmp_path, [("leave", "a"), ("fail", 1), ("leave", "slow", "", 4), *rest], [("leave", "never")])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_another_error_comes_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in break_down.*Unsendable: a cause and more"):
        go(tmp_path, [("break_down",), ("sleep",)])


def test_output_that_nobody_reads_ends_the_run(tmp_path: Path) -> None:
    """As where it goes to `head`, which ends; no process waits for one that hears what it tells."""
    with pytest.raises(SystemExit):
        go(tmp_path, [("tell",), ("tell",), ("sleep",)], progress=Progress(Console(file=Closed())))


class Closed(StringIO):
    """A pipe whose reader has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    flush = write  # type: ignore[assignment]


def test_a_process_that_dies_ends_the_run_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--jobs: one of 2 processes died; if memory ran out, give fewer of them"):
        go(tmp_path, [("die",), ("sleep",)])


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGKILL, False)]
)
def test_no_process_outlives_the_run(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    """Ctrl-C goes to all processes, other signals often to the first alone."""
    # In a job of the background SIGINT is ignored, and would be by what is started here.
    code = "import signal, sys, test_side_by_side as t; from pathlib import Path; "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "t.go(Path(sys.argv[1]), [('sleep',), ('leave', 'done'), ('sleep',)])"
    paths = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: len(list(tmp_path.iterdir())) == 3)
        workers = [int(path.name) for path in tmp_path.iterdir() if path.name != "done"]
        assert all(map(alive, workers))
        if to_all:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert errors.count("Traceback") <= 1  # its own, which the command line turns into a status
        until(lambda: not any(map(alive, workers)))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def until(holds: Callable[[], bool], seconds: int = 60) -> None:
    for _ in range(10 * seconds):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # it has ended, and nobody has asked how


def test_a_stage_that_two_pieces_ask_for_is_computed_once(tmp_path: Path) -> None:
    go(tmp_path, [("stage", 1), ("stage", 2)])
    assert len(list(tmp_path.glob("computed-*"))) == 1
    (stage,) = (tmp_path / "stages").iterdir()  # and no lock is left
    assert (stage / "by").read_text() in "12"


def test_jobs_are_one_a_core_for_small_models_and_one_for_others(six_threads: None) -> None:
    assert checked_jobs(None, alone=False) == 6
    assert checked_jobs(None, alone=True) == 1
    assert checked_jobs(3, alone=True) == 3
    assert shared(8, [[("a",)] * 2, [("b",)] * 3]) == (3, 2)
    with pytest.raises(UserError, match="--jobs: found 0; give a whole number >= 1"):
        checked_jobs(0, alone=False)


def test_the_peak_of_memory_is_that_of_the_largest_process() -> None:
    mib = round(peak_memory_mib(torch.device("cpu"))) + 100
    subprocess.run([sys.executable, "-c", f"b'x' * ({mib} << 20)"], check=True)
    assert peak_memory_mib(torch.device("cpu")) >= mib
