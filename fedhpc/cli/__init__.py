"""The command line: one file per command. Arguments in, text and exit status out."""
