"""What the programs answer before any option is read: what there is, the version, names that are no command's; and all help texts."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.test_packaging import without
from und3rstand_jax.commands import convert, run, train
from und3rstand_jax.commands.front import overview
from und3rstand_jax.support.versions import own_version

PROGRAMS = {program.PROGRAM.module: program for program in (run, convert, train)}
COMMANDS = [(module, name) for module, program in PROGRAMS.items() for name in program.PROGRAM.commands]


def printed(capsys, module, *words):
    """The status and what is said on both streams."""
    try:
        status = PROGRAMS[module].main(list(words))
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def help_of(capsys, module, name):
    status, text, _ = printed(capsys, module, *([name] if name else []), "--help")
    assert status == 0
    return " ".join(text.replace("│", " ").split())


def test_alone_it_shows_every_command_with_an_example_without_the_heavy_imports():
    done = without({"jax", "torch", "matplotlib", "grain", "cv2"}, "from und3rstand_jax.commands.run import main; sys.exit(main([]))")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{overview()}\n", "")
    for name in run.PROGRAM.commands:
        assert re.search(rf"^  {name} ", overview(), re.MULTILINE)
    for name in train.PROGRAM.commands:
        assert f"python -m train {name} " in overview().replace("python -m train  ", "python -m train probes ")
    assert "python -m convert " in overview() and max(map(len, overview().splitlines())) <= 120


def test_the_examples_are_lines_that_the_commands_read():
    examples = re.findall(r"^ +python -m und3rstand_jax (.*)$", overview(), re.MULTILINE)
    kinds = {type(run.PROGRAM.options(shlex.split(example))) for example in examples}
    assert kinds == set(run.PROGRAM.commands.values()) and len(examples) == len(kinds)


@pytest.mark.parametrize("module", PROGRAMS)
def test_every_program_says_its_version(module, capsys):
    assert printed(capsys, module, "--version") == (0, f"und3rstand_jax {own_version()}\n", "")


@pytest.mark.parametrize(
    ("module", "word", "meant"),
    [
        ("und3rstand_jax", "reprot", "report"),
        ("und3rstand_jax", "Sweep", "sweep"),
        ("train", "two_views", "two-views"),
        ("train", "xyz", ""),
    ],
)
def test_a_name_that_is_no_command_gets_a_suggestion(module, word, meant, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = printed(capsys, module, word, "--out", "x")
    commands = ", ".join(PROGRAMS[module].PROGRAM.commands)
    suggestion = f"did you mean {meant}? " if meant else ""
    assert (status, out) == (2, "") and not list(tmp_path.iterdir())
    assert err == f"error: {word} is neither a command nor a file; {suggestion}The commands are {commands}; see python -m {module} --help\n"


def test_a_photo_is_no_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo").touch()
    for name in ("photo", "absent.jpg", "./absent", "a/absent"):
        assert str(run.PROGRAM.options([name, "--out", "x"]).images[0]) == name.removeprefix("./")


@pytest.mark.parametrize(("module", "name"), COMMANDS)
def test_help_names_every_option_and_shows_no_types_of_python(module, name, capsys):
    text = help_of(capsys, module, name)
    for internal in (
        r"\{None",
        r"None\b",
        r"\|None",
        r"\bSTR\b",
        r"\bINT\b",
        r"\bFLOAT\b",
        r"\bPATH\b",
        r"default: ['\"]",
        r"\(default: \)",
    ):
        assert not re.search(internal, text), re.search(f".{{60}}{internal}", text)
    # A name for what each option takes, but for switches.
    for option, rest in re.findall(r"(?<=[ ,])(--[a-z][\w-]*)(?= )(.{40})", text.partition("─ options ─")[2]):
        assert re.match(r" [A-Z{\[\d]|,| zero,| exp,| v5e|\.| ", rest), (option, rest)
    assert "--debug" in text and "--quiet" in text
    assert ("--json" in text) is (name != "learning-curve")
    # A switch is off; only what a config file turns on has a form that turns it off again, and a default to tell.
    assert module == "train" or "(default: False)" not in text


def test_help_of_match_offers_two_photos_only(capsys):
    text = help_of(capsys, "und3rstand_jax", "match")
    assert "IMG1 IMG2 " in text and "IMG3" not in text


def test_help_tells_what_every_program_answers(capsys):
    for module in PROGRAMS:
        text = help_of(capsys, module, "")
        assert "--version" in text and "--completion bash|zsh|fish" in text


def test_the_process_says_what_there_is():
    done = subprocess.run([sys.executable, "-m", "und3rstand_jax"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{overview()}\n", "")
