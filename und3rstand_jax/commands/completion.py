"""Tab completion of commands and options in bash, zsh and fish: the script that `--completion SHELL` prints.

tyro writes scripts for programs that are one word. Here each command is also `python -m MODULE`, and one of its subcommands may be
omitted. This module therefore reuses tyro's table of options and its code that looks them up, and adds its own shell code around them.
Completion needs only `python3`, no installed package, so a key press takes only as long as Python takes to start.
"""

import ast
import contextlib
import io
import re
from typing import Any

import tyro

from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.versions import package_version

SHELLS = ("bash", "zsh", "fish")

_OF_ALL: tuple[dict[str, Any], ...] = (
    {"flags": ["--version"], "description": "show the version", "type": "flag"},
    {
        "flags": ["--completion"],
        "description": "print a script of completions for a shell",
        "type": "choice",
        "choices": list(SHELLS),
    },
)
"""Options that every program has besides its own, in tyro's format; see `und3rstand_jax.commands.front`."""

_BASH = r"""# Completion of @SCRIPT@ and of python -m @MODULE@ in bash, for ~/.bashrc:
#     source <(python3 -m @MODULE@ --completion bash)
IFS= read -r -d '' _und3rstand_@NAME@_table << 'TABLE' || true
@TABLE@
TABLE
# Arguments: the words of the command from its name on, and the number of the one to complete.
_und3rstand_@NAME@_words() {
  local line
  COMPREPLY=()
  while IFS= read -r line; do
    # Without an answer, -o default below completes the names of files.
    [[ -z $line || $line == __TYRO_COMPLETE_FILES__ ]] || COMPREPLY+=("${line%%$'\t'*}")
  done < <(python3 -c "$_und3rstand_@NAME@_table" "$@" 2> /dev/null)
}
_und3rstand_@NAME@() { _und3rstand_@NAME@_words "${COMP_WORDS[@]}" "$COMP_CWORD"; }
_und3rstand_module_@MODULE@() { _und3rstand_@NAME@_words @SCRIPT@ "${COMP_WORDS[@]:3}" "$((COMP_CWORD - 2))"; }
# The same for all commands of the package: python -m one of its modules, and whatever completed Python before for all else.
_und3rstand_python() {
  local complete_module="_und3rstand_module_${COMP_WORDS[2]-}"
  if [[ ${COMP_WORDS[1]-} == -m && $COMP_CWORD -gt 2 ]] && declare -F "$complete_module" > /dev/null; then
    "$complete_module"
  elif [[ -n ${_und3rstand_python_before-} ]]; then
    "$_und3rstand_python_before" "$@"
  fi
}
if [[ $(complete -p python3 2> /dev/null) =~ ' -F '([^ ]+) && ${BASH_REMATCH[1]} != _und3rstand_python ]]; then
  _und3rstand_python_before=${BASH_REMATCH[1]}
fi
complete -o default -F _und3rstand_@NAME@ @SCRIPT@
complete -o default -F _und3rstand_python python python3
"""

_ZSH = r"""# Completion of @SCRIPT@ and of python -m @MODULE@ in zsh, for ~/.zshrc, after compinit:
#     source <(python3 -m @MODULE@ --completion zsh)
IFS= read -r -d '' _und3rstand_@NAME@_table << 'TABLE' || true
@TABLE@
TABLE
_und3rstand_@NAME@() {
  local line
  local -a found
  while IFS= read -r line; do
    [[ -z $line || $line == __TYRO_COMPLETE_FILES__ ]] || found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
  done < <(python3 -c "$_und3rstand_@NAME@_table" "${words[@]}" "$((CURRENT - 1))" 2> /dev/null)
  if (( $#found )); then _describe @SCRIPT@ found; else _files; fi
}
_und3rstand_module_@MODULE@() { words=(@SCRIPT@ "${(@)words[4,-1]}"); (( CURRENT -= 2 )); _und3rstand_@NAME@; }
# The same for all commands of the package: python -m one of its modules, and zsh's own completion of Python for all else.
_und3rstand_python() {
  local complete_module="_und3rstand_module_${words[3]}"
  if [[ ${words[2]} == -m && $CURRENT -gt 3 ]] && (( $+functions[$complete_module] )); then
    $complete_module
  elif (( $+functions[_python] )); then
    _python "$@"
  else
    _files
  fi
}
compdef _und3rstand_@NAME@ @SCRIPT@
compdef _und3rstand_python python python3
"""

_FISH = r"""# Completion of @SCRIPT@ and of python -m @MODULE@ in fish, for ~/.config/fish/config.fish:
#     python3 -m @MODULE@ --completion fish | source
set -g _und3rstand_@NAME@_table '@TABLE@'
# Argument: how many words come before the command's name, or before the one that stands for it.
function _und3rstand_@NAME@
    set -l words (commandline -opc) (commandline -ct)
    set -l words $words[(math $argv[1] + 1)..-1]
    python3 -c "$_und3rstand_@NAME@_table" $words (math (count $words) - 1) 2> /dev/null | string match -v __TYRO_COMPLETE_FILES__
end
function _und3rstand_is_module
    set -l words (commandline -opc)
    test (count $words) -ge 3 -a "$words[2]" = -m -a "$words[3]" = $argv[1]
end
complete -c @SCRIPT@ -a '(_und3rstand_@NAME@ 0)'
for python in python python3
    complete -c $python -n '_und3rstand_is_module @MODULE@' -a '(_und3rstand_@NAME@ 2)'
end
"""


def completion_script(kind: Any, shell: str, module: str, script: str, default: str = "") -> str:
    """The script with which a shell completes a command, both as its installed script and as `python -m MODULE`.

    Args:
        kind: the type of the command's options, for tyro: a dataclass, or a union of subcommands.
        shell: one of `SHELLS`.
        module: the module that `python -m` runs.
        script: name of the installed script.
        default: the subcommand that may be omitted, whose options then follow the command's name.

    Raises:
        UserError: the installed tyro writes its own scripts in an unknown form.
    """
    table, lookup = _tyros(kind, script)
    if default:
        table["options"] += [option for option in table["subcommands"][default]["options"] if option not in table["options"]]
    table["options"] += _OF_ALL
    text = f"COMPLETION_SPEC = {table!r}\n\n{lookup}"
    if shell == "fish":
        text = text.replace("\\", r"\\").replace("'", r"\'")
    template = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]
    named = template.replace("@NAME@", module).replace("@MODULE@", module).replace("@SCRIPT@", script)
    return named.replace("@TABLE@", text)


def _tyros(kind: Any, script: str) -> tuple[dict[str, Any], str]:
    """tyro's table of a command's options, and its code that finds completions there, both from the script that it writes for bash."""
    with contextlib.redirect_stdout(io.StringIO()) as written, contextlib.suppress(SystemExit):
        tyro.cli(kind, prog=script, args=["--tyro-write-completion", "bash", "-"])
    found = re.search(r"<< 'PYTHON_EOF'[^\n]*\n[^\n]*\nCOMPLETION_SPEC = ([^\n]*)\n(.*?)\nPYTHON_EOF\n", written.getvalue(), re.DOTALL)
    if found is None:
        version = package_version("tyro")
        raise UserError(
            f"the completion scripts of the installed tyro {version} have an unknown form; "
            f"install an earlier one (pip install 'tyro<{version}') and give this command again"
        )
    return ast.literal_eval(found[1]), found[2].strip()
