"""Settings: aliases, defaults, and text that means nothing."""

from __future__ import annotations

from pathlib import Path

from trackio.settings import VARIABLES, Settings, read


def test_the_first_variable_that_is_set_and_not_empty_wins() -> None:
    settings, problems = read({"TRACKIO_PROJECT": "", "TRACKIO_PROJECT_NAME": "b", "EXPERIMENT_NAME": "c"})
    assert settings.project == "b" and not problems


def test_nothing_set_means_the_defaults() -> None:
    assert read({"TRACKIO_DIR": "", "TRACKIO_UNKNOWN": "x", "TRACKIO_SPACE_ID": ""}) == (Settings(), [])


def test_text_that_means_nothing_keeps_the_default_and_is_one_sentence_each() -> None:
    odd = {"TRACKIO_SPOOL_MIB": "lots", "TRACKIO_MODE": "sometimes", "TRACKIO_AUTOSTART": "maybe",
           "TRACKIO_SPILL_MIB": "nan", "TRACKIO_IDLE_SECONDS": "-1"}  # fmt: skip
    settings, problems = read(odd)
    assert settings == Settings()
    assert len(problems) == len(odd) and all(any(name in p for p in problems) for name in odd)


def test_sizes_are_in_mebibytes() -> None:
    assert read({"TRACKIO_SPOOL_MIB": "0.5"})[0].spool_bytes == 512 << 10


def test_every_setting_is_on_the_docs_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    assert set(VARIABLES) == set(Settings._fields)
    for variable in VARIABLES.values():
        row = f"| {', '.join(f'`{n}`' for n in variable.names)} | {variable.about} |"
        assert row in page, row
