"""~ in options: behind `=`, in a config file, behind the kind of a data source; for every command at one place."""

from pathlib import Path

import pytest

from und3rstand_jax.commands.command_line import expanded, parse_command, read_options
from und3rstand_jax.commands.convert import Options
from und3rstand_jax.commands.train import COMMANDS, with_config
from und3rstand_jax.data.specification import parse_data
from und3rstand_jax.report.options import ReportOptions
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.files import in_home
from und3rstand_jax.support.option_values import parse_image_size


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def train(*words: str):
    return parse_command(words, COMMANDS, "probes", "train")


def test_every_path_option_is_expanded(home):
    options = train("--out=~/run", "--backbone=~/b", "--config=~/c", "--data=0.5*pairs:~/d", "--data", "co3d:~", "--val-data=pairs:/d~/~")
    assert (options.out, options.backbone, options.config) == (home / "run", f"{home}/b", home / "c")
    assert (options.data, options.val_data) == ((f"0.5*pairs:{home}/d", f"co3d:{home}"), ("pairs:/d~/~",))
    words = ["--repo=~/r", "--out=~/o", "--mapping=~/m", "--hub-cache=~/h", "--to-torch=~/t", "--backbone=~"]
    convert = read_options(Options, "convert", words)
    assert (convert.repo, convert.out, convert.to_torch, convert.backbone) == (f"{home}/r", home / "o", home / "t", str(home))
    assert (convert.probes.mapping, convert.hub.hub_cache) == (home / "m", f"{home}/h")
    report = read_options(ReportOptions, "report", ["~/a.png", "b~.png", "--checkpoint=~/c", "--out=~/o"])
    assert (report.images, report.checkpoint, report.out) == ((home / "a.png", Path("b~.png")), f"{home}/c", home / "o")


def test_a_config_file_is_expanded_as_the_command_line_is(home):
    (home / "c.yaml").write_text("out: ~/run\nbackbone: ~/b\ndata: [pairs:~/d]\nval_data: pairs:~/v\n")
    words = ["--config=~/c.yaml", "--steps", "3"]
    options = with_config(train(*words), words)
    assert (options.out, options.backbone, options.steps) == (home / "run", f"{home}/b", 3)
    assert (options.data, options.val_data) == ((f"pairs:{home}/d",), (f"pairs:{home}/v",))


def test_what_is_no_home_is_left_alone(home, monkeypatch):
    monkeypatch.chdir(home)
    assert expanded(("a~", "owner/~x", "x=~/y", 3, None)) == ("a~", "owner/~x", "x=~/y", 3, None)
    # A name like any other: nothing further down may look for that user again.
    assert expanded(Path("~nobody-has-this-name/x")) == home / "~nobody-has-this-name" / "x"


@pytest.mark.parametrize("path", ["~nobody-has-this-name/x", "~a\0b"])
def test_a_home_that_nobody_has_is_a_name_like_any_other(path: str) -> None:
    assert in_home(path) == Path(path)


def test_a_null_character_in_a_config_file_is_one_line(tmp_path, capsys) -> None:
    from und3rstand_jax.commands.train import main

    (tmp_path / "c.yaml").write_text(r'backbone: "~\0x"' + "\n")
    assert main(["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_options_that_hold_what_no_name_or_number_can_are_refused() -> None:
    for text in ("pairs:~nobody-has-this-name/x", "pairs:~"):
        parse_data([text])
    with pytest.raises(OptionError, match="cannot contain a null character"):
        parse_data(["pairs:a\0b"])
    with pytest.raises(OptionError, match="neither a side nor WIDTHxHEIGHT"):
        parse_image_size("9" * 5000, 16, "--resolution")
