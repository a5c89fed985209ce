"""The command line: one file per command. Arguments in, text and exit status out.

A command's module has `HELP` (one line), `add_arguments(parser)` and `run(options) -> int`. It imports what it needs
when it runs, so that `--help` is quick. A new command is one module and one line of `fedhpc.cli.main.COMMANDS`.
A module may have `arrange(words)`, which returns the words after the command in the order that its parser reads.
"""
