"""The notebook in `examples/` runs from top to bottom, and shows what it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's own packages warn as they please
def test_the_notebook_runs(tmp_path: Path) -> None:
    place = Path(shutil.copy(NOTEBOOK, tmp_path))
    notebook = nbformat.read(place, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # it is stored without what it showed
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        "".join(
            str(data) for output in cell.outputs for data in output.get("data", {"": output.get("text", "")}).values()
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    frame, plan, scored, table, chosen, kept, dropped, page = shown
    assert "instruction" in frame and "forward passes, given" in plan
    assert "<svg" in scored and "scoring: 600 records" in scored  # the line of progress, as it stayed
    assert "problem" in table and "kept 60 of 600" in chosen and "gate" in dropped
    assert "output" in kept and "notebook.html (600 examples" in page
    assert len((tmp_path / "kept.jsonl").read_text("utf-8").splitlines()) == 60
