"""Scripts of completion: each is read by its shell, and completes the installed script and `python -m MODULE` alike."""

import importlib.metadata
import shutil
import subprocess

import pytest

from und3rstand_jax.commands import convert, run, train
from und3rstand_jax.commands.completion import SHELLS

PROGRAMS = [program.PROGRAM for program in (run, convert, train)]


def ask(program, *words):
    with pytest.raises(SystemExit) as end:
        program.options(words)
    return end.value.code


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Shell -> the three scripts, as the commands print them."""
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch:
        for shell in SHELLS:
            for program in PROGRAMS:
                with (folder / f"{program.module}.{shell}").open("w") as file:
                    patch.setattr("sys.stdout", file)
                    assert ask(program, *([f"--completion={shell}"] if shell == "zsh" else ["--completion", shell])) == 0
    return {shell: [folder / f"{program.module}.{shell}" for program in PROGRAMS] for shell in SHELLS}


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_can_read_its_script(scripts, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    for script in scripts[shell]:
        done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


COMPLETED = {
    "und3rstand-jax re": ["report"],
    "und3rstand-jax --lay": ["--layers"],  # of run, whose name may be left out
    "und3rstand-jax --vers": ["--version"],
    "und3rstand-jax --completion f": ["fish"],
    "und3rstand-jax report --uses ": ["auto", "yes", "no"],
    "python -m und3rstand_jax sw": ["sweep"],
    "python3 -m und3rstand_jax sweep --measure p": ["probes"],
    "python3 -m train two": ["two-views"],
    "und3rstand-train --mlp": ["--mlps"],
    "und3rstand-train plan --topo": ["--topology"],
    "python3 -m convert --to-t": ["--to-torch"],
    "und3rstand-convert --overw": ["--overwrite"],
    # Left to what completes files, or completed Python before.
    "und3rstand-jax photo": [],
    "python3 -m pip ins": [],
    "python3 scr": [],
    "python3 -m tra": [],
}

_COMPLETE = """
complete_line() {
  read -r -a COMP_WORDS <<< "$1"
  [[ $1 == *' ' ]] && COMP_WORDS+=('')
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMPREPLY=()
  [[ $(complete -p "${COMP_WORDS[0]}") =~ ' -F '([^ ]+) ]] && "${BASH_REMATCH[1]}"
  echo "$1: ${COMPREPLY[*]}"
}
"""


def test_bash_completes_scripts_and_modules(scripts):
    sourced = "".join(f"source '{script}'\n" for script in scripts["bash"])
    asked = "".join(f"complete_line '{line}'\n" for line in COMPLETED)
    done = subprocess.run(["bash", "--norc", "-c", f"set -u\n{sourced}{_COMPLETE}{asked}"], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{line}: {' '.join(found)}" for line, found in COMPLETED.items()]


def test_bash_keeps_what_completed_python_before(scripts):
    before = "_mine() { COMPREPLY=(mine); }\ncomplete -F _mine python3\n"
    # Twice, as where a file of settings is read again.
    sourced = "".join(f"source '{script}'\n" for script in scripts["bash"] * 2)
    code = f"{before}{sourced}{_COMPLETE}complete_line 'python3 -m pip i'\ncomplete_line 'python3 -m train ins'\n"
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("python3 -m pip i: mine\npython3 -m train ins: inspect\n", "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes_scripts_and_modules(scripts):
    sourced = "".join(f"source '{script}'\n" for script in scripts["fish"])
    for line, found in COMPLETED.items():
        code = f"{sourced}complete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, timeout=120)
        # Names of files, which fish adds, have no description.
        ours = {row.partition("\t")[0] for row in done.stdout.splitlines() if "\t" in row}
        assert set(found) <= ours, (line, done.stdout, done.stderr)


def test_a_tyro_that_writes_other_scripts_is_named(monkeypatch, capsys):
    monkeypatch.setattr("tyro.cli", lambda *args, **settings: print("complete -F _other und3rstand-jax"))
    assert ask(run.PROGRAM, "--completion", "bash") == 2
    version = importlib.metadata.version("tyro")
    told = f"error: the completion scripts of the installed tyro {version} have an unknown form; install an earlier one"
    assert capsys.readouterr() == ("", f"{told} (pip install 'tyro<{version}') and give this command again\n")


def test_a_shell_that_is_not_known_is_refused(capsys):
    assert ask(run.PROGRAM, "--completion", "tcsh") == 2
    assert ask(run.PROGRAM, "--completion") == 2
    told = "error: --completion takes one shell: bash, zsh, fish; found"
    assert capsys.readouterr().err == f"{told} tcsh\n{told} nothing\n"
