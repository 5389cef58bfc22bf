"""Settings: aliases, defaults, and text that means nothing."""

from __future__ import annotations

from pathlib import Path

from conftest import Host

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


def test_a_settings_file_stands_beneath_the_environment(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "trackio"
    folder.mkdir(parents=True)
    (folder / "settings.toml").write_text('project = "of the file"\nquiet = true\nrun_name = "r"\nnonsense = 1\n')
    code = "from trackio import settings; s, p = settings.of_this_process(); print(s.project, s.quiet, s.run_name, p)"
    env = {
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "TRACKIO_PROJECT_NAME": "of the environment",
        "TRACKIO_RUN_NAME": "",
    }
    out = host.run(code, env=env).stdout
    assert out.startswith("of the environment True r [") and out.count("no setting") == 1 and "nonsense" in out
    (folder / "settings.toml").write_text("this is = = no toml")
    out = host.run(code, env=env).stdout
    assert out.startswith("of the environment False ") and out.count("cannot be read") == 1
