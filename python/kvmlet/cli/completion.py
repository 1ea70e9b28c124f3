"""`kvmlet completion`: a script that completes kvmlet's words in a shell.

Each shell gets what the help says: commands, options, their values. Where a command takes a
program, the program's own completion goes on.
"""

from kvmlet.cli._parser import Parser
from kvmlet.cli._text import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmlet.cli._words import Option

SHELLS = ("bash", "zsh", "fish")

_DESCRIPTION = """\
Print a script that completes kvmlet's commands, options and files. To have it in each new shell:

  bash   kvmlet completion bash > ~/.local/share/bash-completion/completions/kvmlet
  zsh    kvmlet completion zsh > DIR/_kvmlet, with a DIR of $fpath
  fish   kvmlet completion fish > ~/.config/fish/completions/kvmlet.fish
"""


def main(words: list[str]) -> int:
    """Print the script; the exit status."""
    shell = parser().parse_args(words).shell
    return show({"bash": bash, "zsh": zsh, "fish": fish}[shell]())


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="kvmlet completion",
        usage=f"kvmlet completion {{{','.join(SHELLS)}}}",
        description=_DESCRIPTION,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    return parser


def _commands() -> "Iterator[tuple[str, list[Option]]]":
    from kvmlet.cli._words import PARSERS, options

    for name, parser in PARSERS.items():
        yield name, [option for _, group in options(parser()) for option in group]


_BASH = """\
# Completion of kvmlet's words for bash.

_kvmlet_options() {{
    case $1 in
{options}
    esac
}}

# Options whose value is a word of its own.
_kvmlet_takes_value() {{
    case $1:$2 in
{takes_value}) return 0 ;;
    esac
    return 1
}}

_kvmlet_values() {{
    case $1:$2 in
{values}
    esac
}}

_kvmlet() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} at=2 word
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$cur"))
        return
    fi
    while ((at < COMP_CWORD)); do
        word=${{COMP_WORDS[at]}}
        if _kvmlet_takes_value "$command" "$word"; then
            # bash cuts --option=value into three words.
            [[ ${{COMP_WORDS[at + 1]}} == = ]] && ((at++))
            if ((at + 1 >= COMP_CWORD)); then
                [[ $cur == = ]] && cur=
                _kvmlet_values "$command" "$word"
                return
            fi
            ((at += 2))
        elif [[ $word == -- ]]; then
            ((at++))
            break
        elif [[ $word == -* ]]; then
            ((at++))
        else
            break
        fi
    done
    case $command in
    {with_program})
        if ((at < COMP_CWORD)); then
            declare -F _command_offset > /dev/null && _command_offset "$at" || compopt -o default
            return
        elif [[ $cur != -* || ${{COMP_WORDS[COMP_CWORD - 1]}} == -- ]]; then
            COMPREPLY=($(compgen -c -- "$cur") $(compgen -f -- "$cur"))
            compopt -o filenames
            return
        fi
        ;;
    why) COMPREPLY=($(compgen -f -- "$cur")) ;;
    apply) COMPREPLY=($(compgen -d -- "$cur")) ;;
    completion) COMPREPLY=($(compgen -W "{shells}" -- "$cur")) ;;
    esac
    [[ $cur == -* ]] && COMPREPLY=($(compgen -W "$(_kvmlet_options "$command")" -- "$cur"))
}}

complete -F _kvmlet kvmlet
"""


def bash() -> str:
    """The script for bash."""
    from kvmlet.cli._words import WITH_PROGRAM

    commands = dict(_commands())
    listed = [
        f"    {name}) echo '{' '.join(word for option in found for word in option.names)}' ;;"
        for name, found in commands.items()
    ]
    takes_value, values = ["''"], []
    for name, found in commands.items():
        for option in found:
            if not option.metavar or option.is_optional:
                continue
            patterns = "|".join(f"{name}:{word}" for word in option.names)
            takes_value.append(patterns)
            if option.choices:
                reply = f"""COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur"))"""
            elif option.files:
                kind = "-d" if option.files == "directories" else "-f"
                reply = f"""compopt -o filenames; COMPREPLY=($(compgen {kind} -- "$cur"))"""
            else:
                continue
            values.append(f"    {patterns}) {reply} ;;")
    return _BASH.format(
        options="\n".join(listed),
        takes_value="    " + " | ".join(takes_value),
        values="\n".join(values),
        commands=" ".join(commands),
        with_program=" | ".join(WITH_PROGRAM),
        shells=" ".join(SHELLS),
    )


def _zsh_text(text: str) -> str:
    """A text in brackets or between colons of a specification in single quotes."""
    for character in "\\[]:":
        text = text.replace(character, "\\" + character)
    return text.replace("'", "'\\''")


def zsh() -> str:
    """The script for zsh."""
    from kvmlet.cli._words import DESCRIPTIONS, WITH_PROGRAM

    lines = ["#compdef kvmlet", "", "_kvmlet() {", "    local -a commands", "    commands=("]
    lines += [f"        '{name}:{_zsh_text(DESCRIPTIONS[name])}'" for name, _ in _commands()]
    lines += [
        "    )",
        "    if ((CURRENT == 2)); then",
        "        _describe command commands",
        "        _arguments '--help' '--version'",
        "        return",
        "    fi",
        "    shift words",
        "    ((CURRENT--))",
        "    case $words[1] in",
    ]
    for name, found in _commands():
        lines += [f"    {name})", "        _arguments -S \\"]
        for option in found:
            value = ""
            if option.metavar:
                action = "( )".replace(" ", " ".join(option.choices)) if option.choices else ""
                action = (
                    action or {"files": "_files", "directories": "_files -/", "": ""}[option.files]
                )
                colons = "::" if option.is_optional else ":"
                value = f"{colons}{_zsh_text(option.metavar)}:{action}"
            for word in option.names:
                # A long option's value is the next word, or follows an equals sign.
                equals = "=" if option.metavar and word.startswith("--") else ""
                lines.append(f"            '*{word}{equals}[{_zsh_text(option.help)}]{value}' \\")
        if name in WITH_PROGRAM:
            lines += [
                "            '(-):program:_command_names -e' \\",
                "            '*::argument:_normal'",
            ]
        elif name == "why":
            lines.append("            '*:path:_files'")
        elif name == "completion":
            lines.append(f"            ':shell:({' '.join(SHELLS)})'")
        else:
            lines.append("            ")
        lines.append("        ;;")
    lines += ["    esac", "}", "", '_kvmlet "$@"']
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _fish_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def fish() -> str:
    """The script for fish."""
    from kvmlet.cli._words import DESCRIPTIONS, WITH_PROGRAM

    lines = ["# Completion of kvmlet's words for fish.", "complete -c kvmlet -f"]
    for name, _ in _commands():
        about = _fish_text(DESCRIPTIONS[name])
        lines.append(f"complete -c kvmlet -n __fish_use_subcommand -a {name} -d {about}")
    for name, found in _commands():
        when = f"-n '__fish_seen_subcommand_from {name}'"
        for option in found:
            parts = [f"complete -c kvmlet {when}"]
            parts += [
                f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
                for word in option.names
            ]
            if option.metavar and not option.is_optional:
                parts.append("-r")
            if option.choices:
                parts.append(f"-f -a '{' '.join(option.choices)}'")
            elif option.files == "files":
                parts.append("-F")
            elif option.files == "directories":
                parts.append("-f -a '(__fish_complete_directories)'")
            lines.append(" ".join([*parts, f"-d {_fish_text(option.help)}"]))
        if name in WITH_PROGRAM:
            # Two words come before, and options, of which these take a value.
            with_value = [o for o in found if o.metavar and not o.is_optional]
            skipped = " ".join(word for option in with_value for word in option.names)
            program = f"(__fish_complete_subcommand --fcs-skip=2 {skipped})"
            lines.append(f"complete -c kvmlet {when} -F -a '{program}'")
        elif name == "why":
            lines.append(f"complete -c kvmlet {when} -F")
    words = " ".join(SHELLS)
    lines.append(f"complete -c kvmlet -n '__fish_seen_subcommand_from completion' -a '{words}'")
    return "\n".join(lines) + "\n"
