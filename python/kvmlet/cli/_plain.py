"""Options that are written as most are, read without argparse: importing that is half of the start.

All that is not plain is left to argparse, with the help and every error. A test compares the two.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    Value = bool | str | list[str] | None
else:

    class Namespace:
        """The values of options by their names."""

        def __init__(self, **values):
            self.__dict__.update(values)


class _Option:
    """An option, of the kinds that are used: argparse has more."""

    def __init__(self, name: str, action: str, nargs: str | None, const: "Value") -> None:
        self.name, self.const = name, const
        self.is_flag = action == "store_true"
        self.is_list = action == "append"
        self.is_optional = nargs == "?"
        self.choices: Sequence[str] | None = None
        # Of several with one such list, only one may be given.
        self.excluding: list[str] | None = None


class Plain:
    """The options that are declared, in the place of argparse.ArgumentParser and its groups."""

    def __init__(self, whole: "Plain | None" = None, excluding: list[str] | None = None) -> None:
        self._options: dict[str, _Option] = {} if whole is None else whole._options
        self._defaults: dict[str, Value] = {} if whole is None else whole._defaults
        self._excluding = excluding

    def add_argument_group(self, _title: str) -> "Plain":
        """Titles are of the help."""
        return Plain(self)

    def add_mutually_exclusive_group(self) -> "Plain":
        """Of the options in it, one may be given."""
        return Plain(self, [])

    def add_argument(
        self,
        *names: str,
        action: str = "store",
        nargs: str | None = None,
        const: str | None = None,
        default: "Value" = None,
        choices: "Sequence[str] | None" = None,
        **_help: str | None,
    ) -> None:
        """Declare an option, by its names."""
        long = next((name for name in names if name.startswith("--")), names[0])
        option = _Option(long.lstrip("-").replace("-", "_"), action, nargs, const)
        option.choices = choices
        option.excluding = self._excluding
        self._options.update(dict.fromkeys(names, option))
        self._defaults[option.name] = False if option.is_flag else default

    def read(self, words: list[str]) -> Namespace | None:
        """The options in `words`; None if argparse has to look at them."""
        values = dict(self._defaults)
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = list(value)
        given: list[tuple[list[str], str]] = []
        rest = iter(words)
        for word in rest:
            name, equals, value = word.partition("=") if word[:2] == "--" else (word, "", "")
            option = self._options.get(name)
            if option is None or (option.is_flag and equals):
                return None
            if option.excluding is not None:
                if any(other is option.excluding and of != option.name for other, of in given):
                    return None
                given.append((option.excluding, option.name))
            if option.is_flag:
                values[option.name] = True
                continue
            if option.is_optional and not equals:
                # argparse would take a value that follows. Here none does: the program does.
                values[option.name] = option.const
                continue
            text = value if equals else next(rest, "-")
            # Another option, or nothing, in the place of a value.
            if (not equals and text[:1] == "-") or (option.choices and text not in option.choices):
                return None
            kept = values[option.name]
            if option.is_list and isinstance(kept, list):
                kept.append(text)
            else:
                values[option.name] = text
        return Namespace(**values)
