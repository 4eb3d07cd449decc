import io

from bitsweep.runtime.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is() -> None:
    terminal = Terminal()
    with progress_bar(terminal, "decoding", 7) as advance:
        advance(3)
        advance(2)
    assert "decoding" in terminal.getvalue()
    assert "5/7" in terminal.getvalue()


def test_a_file_gets_no_bar() -> None:
    file = io.StringIO()
    with progress_bar(file, "decoding", 7) as advance:
        advance(7)
    assert not file.getvalue()
