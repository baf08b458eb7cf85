"""Run one notebook in several processes, on one machine or on many:

    accelerate launch --config_file configs/accelerate/ddp.yaml tools/run_stage.py 02

Every process runs all cells; the first one speaks and hands over.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils import notebooks
from utils.course import Course


def code_cells(number: str) -> list[str]:
    """The code of a notebook, cell by cell."""
    import nbformat

    notebook = nbformat.read(notebooks.path_of(number), as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def hand_over_once(rank: int) -> None:
    """Let the first process alone publish an artifact, and the others wait until it is there."""
    publish = Course.hand_over

    @contextlib.contextmanager
    def hand_over(self: Course, *arguments: object, **options: object) -> Iterator[Path]:
        from accelerate import PartialState

        if rank == 0:
            with publish(self, *arguments, **options) as folder:
                yield folder
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)
        PartialState().wait_for_everyone()

    Course.hand_over = hand_over


def main(number: str) -> None:
    """Run the cells in one namespace, as a kernel would."""
    rank = int(os.environ.get("RANK", "0"))
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are drawn and thrown away
    os.chdir(notebooks.FOLDER)
    hand_over_once(rank)
    names: dict[str, object] = {"__name__": "__main__", "display": print}
    with contextlib.ExitStack() as stack:
        if rank:
            stack.enter_context(
                contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w")))
            )
        for position, cell in enumerate(code_cells(number), start=1):
            exec(compile(cell, f"{number}, code cell {position}", "exec"), names)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name one notebook: accelerate launch … tools/run_stage.py 02")
    main(sys.argv[1])
