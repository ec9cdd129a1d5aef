"""The help of ``twistd asyncplumber`` and of ``asyncplumber serve``: all options, by groups."""

from __future__ import annotations

import textwrap

from asyncplumber.option_list import FLAGS, GROUPS, PREFIX, Option

# After which option the help shows the flags.
_FLAGS_AFTER = {"workers": ("insecure", "page"), "log-level": ("log-requests",)}
_WIDTH = 80  # columns


def help_text(description: str) -> str:
    """Return the help: the options by groups, in the units that they take."""
    lines = [textwrap.fill(description, _WIDTH), ""]
    for title, options in GROUPS.items():
        lines.append(f"{title}:")
        for option in options:
            lines += _help(option)
            for name in _FLAGS_AFTER.get(option.name, ()):
                lines += _entry(f"    --{name}", FLAGS[name])
        lines.append("")
    lines += [
        textwrap.fill(
            "DURATION is a number with ms, s, min, h or d, and SIZE one with kB, MB, KiB or "
            "MiB; without a unit they are seconds and bytes.  Every option can be given in the "
            f"environment: --history-age is {PREFIX}HISTORY_AGE.",
            _WIDTH,
        ),
        "",
        *_entry("    --version", "Print the version and exit."),
        *_entry("    --help", "Print this help and exit."),
        "",
    ]
    return "\n".join(lines)


def _help(option: Option) -> list[str]:
    short = f"-{option.short}, " if option.short else "    "
    text = option.text + (f"  Default: {option.default}" if option.default else "")
    return _entry(f"{short}--{option.name}{option.value and f'={option.value}'}", text)


def _entry(name: str, text: str) -> list[str]:
    """Lay out one option: its name on the left, its sentence on the right."""
    indent = 36  # two spaces more than the longest name
    lines = textwrap.wrap(text, _WIDTH - indent)
    return [f"  {name:<{indent - 2}}{lines[0]}", *(" " * indent + line for line in lines[1:])]
