"""Progress and tables where no terminal is."""

import io
import threading
import time

from rich.console import Console

from planimeter.cli import output


def test_a_log_hears_of_what_says_nothing_itself(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(output, "errors", Console(file=log, width=200))
    monkeypatch.setattr(output, "SILENCE", 0.05)
    before, deadline = threading.active_count(), time.monotonic() + 60
    with output.progress_bar() as bar:
        bar.add_task("trace", total=100)
        while "trace, 0 of 100" not in log.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "trace, 0 of 100" in log.getvalue()
    assert threading.active_count() == before  # silent once it is over


def test_wide_tables_fold_what_may_be_folded(monkeypatch):
    table = io.StringIO()
    monkeypatch.setattr(output, "output", Console(file=table, width=60))
    rows = [("trace", "1.25 ± 0.02", "word " * 20), ("frobenius_norm", "3", "short")]
    output.print_wide_table("title", ("measure", "value", "how"), rows, fold=20)
    lines = table.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert any("1.25 ± 0.02" in line and "word" in line for line in lines)
