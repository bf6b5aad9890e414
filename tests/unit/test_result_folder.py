"""The files of a result, and the folder they are written to."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from common.display import output_console
from common.errors import MessageError, PipelineError, SettingsError
from common.result_folder import TEMPORARY, check_output, delete_folder, write_folder, write_folder_or_temporary
from common.submission import Outcome
from tests.support.drawing import all_files
from tests.support.paths import ROOT
from workers.command.run import Folder
from workers.visualisation.result_files import root_file

FILES = {"result.json": b"{}\n", "m4l.png": b"\x89PNG", "histograms.root": b"root" * 1000}
BAD_NAMES = ["", ".", "..", "../x", "a/b", "/etc/x", "a\\b", ".hidden", "a..b", "a.", "a\n", "a b", "a\0"]
BAD_NAMES += ["é", "-rf", "x" * 101]
EDGES = np.linspace(80.0, 250.0, 35)


def result(**changes: Any) -> dict[str, Any]:
    """A small result of two histograms, of which one has no signal."""
    rising = np.arange(34.0)

    def contents(values: Any, mean_weight: float = 1.0) -> dict[str, list[float]]:
        return {"values": values.tolist(), "variances": (values * mean_weight).tolist()}

    backgrounds = {"z_ttbar": contents(rising / 3, 0.5), "zz": contents(rising / 2, 0.1)}
    categories = {"data": contents(rising), **backgrounds}
    document = {
        "run_id": "run1", "release": "2020e-13tev", "toy": False, "complete": True, "problems": ["é → 4ℓ"],
        "settings": {"lumi": 10.0, "fraction": 1.0, "pt_cuts": []}, "samples": {},
        "histograms": {
            "m4l": {"edges": EDGES.tolist(), **categories, "signal": contents(rising / 7, 0.01)},
            "m4l_4e": {"edges": EDGES.tolist(), **categories},
        },
    }  # fmt: skip
    return document | changes


def content(folder: Path) -> dict[str, bytes]:
    """Return the contents of a folder's files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The files


def test_a_result_has_a_document_two_files_of_each_histogram_and_a_root_file() -> None:
    files = all_files(result())
    plots = [f"{name}.{kind}" for name in ("m4l", "m4l_4e") for kind in ("png", "pdf")]
    assert list(files) == ["result.json", *plots, "histograms.root"]
    assert json.loads(files["result.json"]) == result()
    assert "é → 4ℓ".encode() in files["result.json"]
    assert files["m4l.png"].startswith(b"\x89PNG")
    assert files["m4l.pdf"].startswith(b"%PDF")
    again = all_files(result())
    assert {name for name in files if files[name] != again[name]} <= {"histograms.root"}


def test_a_result_whose_figures_cannot_be_drawn_has_every_other_file_and_says_so() -> None:
    document = result(fit={"signal_strength": 1.0}, problems=[], workspace={"channels": []})
    files = all_files(document)
    plots = [f"{name}.{kind}" for name in ("m4l", "m4l_4e") for kind in ("png", "pdf")]
    assert list(files) == ["result.json", *plots, "histograms.root", "workspace.json"]
    written = json.loads(files["result.json"])
    assert written == document | {"problems": written["problems"]}
    assert len(written["problems"]) == 5
    assert written["problems"][0] == "figure fit_prefit cannot be drawn: KeyError: 'prefit'"


def test_the_fonts_are_in_the_pdf() -> None:
    pdf = all_files(result())["m4l.pdf"]
    assert b"TeXGyreHeros-Regular" in pdf
    assert pdf.count(b"/Subtype /Type3") == pdf.count(b"/CharProcs") > 0
    assert b"CreationDate" not in pdf


def test_the_root_file_holds_the_histograms_of_the_result() -> None:
    with uproot.open(io.BytesIO(all_files(result())["histograms.root"])) as file:
        assert file.classnames(recursive=True, cycle=False) == {
            "m4l": "TDirectory", "m4l/data": "TH1D", "m4l/z_ttbar": "TH1D", "m4l/zz": "TH1D",
            "m4l/signal": "TH1D",
            "m4l_4e": "TDirectory", "m4l_4e/data": "TH1D", "m4l_4e/z_ttbar": "TH1D", "m4l_4e/zz": "TH1D",
        }  # fmt: skip
        for name, histogram in result()["histograms"].items():
            for category in histogram.keys() - {"edges"}:
                read = file[f"{name}/{category}"]
                assert read.values().tolist() == histogram[category]["values"]
                assert read.variances().tolist() == histogram[category]["variances"]
                assert read.axis().edges().tolist() == histogram["edges"]
                assert read.values(flow=True)[[0, -1]].tolist() == [0, 0]
        assert file["m4l/z_ttbar"].title == "Z, t#bar{t}"
        assert file["m4l/signal"].title == "H#to ZZ^{*} (m_H = 125 GeV)"
        assert file["m4l/data"].axis().member("fTitle") == "m_{4l} [GeV]"


def test_the_root_file_names_the_axis_of_each_histogram() -> None:
    m4l = result()["histograms"]["m4l"]
    names = {
        "m4l": "m_{4l}",
        "m4l_4mu": "m_{4l}",
        "m_z1": "m_{Z1}",
        "m_z2": "m_{Z2}",
        "lead_pt": "Leading lepton p_{T}",
    }
    document = result(histograms=dict.fromkeys(names, m4l), variations={"m4l_scale_up": {"zz": m4l["zz"]}})
    with uproot.open(io.BytesIO(root_file(document))) as file:
        titles = {name: file[f"{name}/data"].axis().member("fTitle") for name in names}
        assert titles == {name: f"{title} [GeV]" for name, title in names.items()}
        assert file["m4l_scale_up/zz"].values().tolist() == m4l["zz"]["values"]
        assert file["m4l_scale_up/zz"].axis().member("fTitle") == "m_{4l} [GeV]"


def test_a_toy_is_marked_in_the_root_file() -> None:
    with uproot.open(io.BytesIO(all_files(result(toy=True))["histograms.root"])) as file:
        assert file["m4l/data"].title == "TOY demo – not ATLAS data: Data"


def test_a_number_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        all_files(result(window={"significance": float("nan")}))


# The folder


def test_the_folder_holds_the_files_and_no_temporary_folder_is_left(tmp_path: Path) -> None:
    folder = write_folder(FILES, tmp_path / "results" / "here", "run1")
    assert folder == tmp_path / "results" / "here" / "run1"
    assert content(folder) == FILES
    assert os.listdir(folder.parent) == ["run1"]


def test_the_folder_has_the_permissions_that_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    folder = write_folder(FILES, tmp_path, "run1")
    assert folder.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_writing_the_same_files_again_changes_nothing(tmp_path: Path) -> None:
    folder = write_folder(FILES, tmp_path, "run1")
    before = folder.stat(), (folder / "m4l.png").stat()
    write_folder(dict(reversed(FILES.items())), tmp_path, "run1")
    after = folder.stat(), (folder / "m4l.png").stat()
    assert [(s.st_ino, s.st_mtime_ns) for s in after] == [(s.st_ino, s.st_mtime_ns) for s in before]


@pytest.mark.parametrize("newer", [{"result.json": b"[]\n"}, {**FILES, "more.txt": b""}])
def test_a_newer_result_replaces_the_whole_older_folder(newer: dict[str, bytes], tmp_path: Path) -> None:
    write_folder(FILES, tmp_path, "run1")
    assert content(write_folder(newer, tmp_path, "run1")) == newer
    assert os.listdir(tmp_path) == ["run1"]


def test_readers_see_complete_folders_while_writers_replace_them(tmp_path: Path) -> None:
    versions = [{f"{i}.txt": bytes([version]) * 100 for i in range(8)} for version in range(4)]
    write_folder(versions[0], tmp_path, "run1")

    def write(first: int) -> None:
        for i in range(12):
            write_folder(versions[(first + i) % 4], tmp_path, "run1")

    writers = [threading.Thread(target=write, args=(first,)) for first in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        try:
            folder = os.open(tmp_path / "run1", os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # between two renames
        try:
            names = os.listdir(folder)
            assert len(names) == 8 or os.stat(folder).st_ino != _inode(tmp_path / "run1")  # being deleted
            seen += 1
        finally:
            os.close(folder)
    for writer in writers:
        writer.join()
    assert seen
    assert content(tmp_path / "run1") in versions
    assert os.listdir(tmp_path) == ["run1"]


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


#: Writes a folder of run1, and is killed before the new folder is renamed.
KILLED = """
import os, signal, sys
from pathlib import Path
from common import result_folder
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
result_folder.write_folder({"result.json": b"[]", "more.txt": b"more"}, Path(sys.argv[1]), "run1")
"""


def test_a_folder_left_by_a_killed_process_is_deleted_after_an_hour(tmp_path: Path) -> None:
    write_folder(FILES, tmp_path, "run1")
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(f"{TEMPORARY}*")
    assert content(tmp_path / "run1") == FILES
    write_folder(FILES, tmp_path, "another-run")
    assert left.exists()  # it may be one that another process writes now
    hour_ago = time.time() - 3700
    os.utime(left, (hour_ago, hour_ago))
    write_folder(FILES, tmp_path, "another-run")
    assert sorted(os.listdir(tmp_path)) == ["another-run", "run1"]


def test_a_folder_of_another_process_is_kept_by_a_machine_whose_clock_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{TEMPORARY}other").mkdir()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    write_folder(FILES, tmp_path, "run1")
    assert (tmp_path / f"{TEMPORARY}other").exists()


def test_an_output_directory_is_created_and_left_empty(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied"), (errno.ESTALE, "Stale file")],
)
def test_an_output_directory_without_room_or_permission_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, expected: str
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SettingsError) as refused:
        check_output(tmp_path)
    assert str(refused.value).startswith(f"OUTPUT='{tmp_path}': no result can be written there: {expected}")
    assert str(refused.value).endswith("(--output DIR)")
    assert os.listdir(tmp_path) == []


def test_where_no_folder_can_be_written_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(PipelineError, match=r"results/run1 cannot be written: No space .*; nor can a temporary"):
        write_folder_or_temporary(FILES, tmp_path / "results", "run1")


def test_a_deleted_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    delete_folder(write_folder(FILES, tmp_path, "run1"))
    assert os.listdir(tmp_path) == []


def test_other_hidden_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    os.utime(tmp_path / ".cache", (0, 0))
    write_folder(FILES, tmp_path, "run1")
    assert sorted(os.listdir(tmp_path)) == [".cache", "run1"]


def test_the_older_folder_is_kept_if_the_disk_is_full(tmp_path: Path, monkeypatch: Any) -> None:
    write_folder(FILES, tmp_path, "run1")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_folder({"result.json": b"[]"}, tmp_path, "run1")
    assert content(tmp_path / "run1") == FILES
    assert os.listdir(tmp_path) == ["run1"]


def test_a_file_in_the_place_of_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run1").write_text("mine")
    with pytest.raises(NotADirectoryError):
        write_folder(FILES, tmp_path, "run1")
    assert (tmp_path / "run1").read_text() == "mine"
    assert os.listdir(tmp_path) == ["run1"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MessageError, match=r"run id .* is refused"):
        write_folder(FILES, tmp_path, name)
    with pytest.raises(MessageError, match=r"file name .* is refused"):
        write_folder({**FILES, name: b""}, tmp_path, "run1")
    assert os.listdir(tmp_path) == []


def test_writing_a_folder_needs_neither_matplotlib_nor_uproot() -> None:
    code = (
        "import sys, common.result_folder;"
        "heavy = {'matplotlib', 'uproot', 'hist', 'mplhep', 'numpy'} & sys.modules.keys();"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_picture_to_open_is_the_first_histogram_in_whichever_order_files_arrive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"histograms": {"m4l": {}, "channel": {}}, "complete": True, "problems": []}
    files = {"channel.png": b"", "fit_pulls.png": b"", "m4l.png": b"", "result.json": json.dumps(result).encode()}
    assert Folder(tmp_path, "run", output_console()).write(Outcome(result, files)) == 0
    assert f"picture to open: {tmp_path / 'run' / 'm4l.png'}" in capsys.readouterr().out.splitlines()
