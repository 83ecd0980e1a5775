import logging

from ctmasknet.errors import CTMaskNetError, command_line


def test_a_tool_names_its_options_where_the_library_names_arguments(capsys):
    message = "`max_bad_share` is 3; give 0..1, or see `python tools/predict.py --help`"

    @command_line
    def main():
        raise CTMaskNetError(message)

    assert main() == 2
    assert capsys.readouterr().err == (
        "error: --max-bad-share is 3; give 0..1, or see `python tools/predict.py --help`\n"
    )


def test_a_warning_before_there_is_a_log_says_that_it_is_one(monkeypatch):
    monkeypatch.setattr(logging, "lastResort", logging.Handler())
    command_line(lambda: 0)()
    record = logging.LogRecord("ctmasknet", logging.WARNING, "", 0, "told", (), None)
    assert logging.lastResort.format(record) == "WARNING: told"
