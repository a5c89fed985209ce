"""A hospital's own model, made from the final one after the federation. Nothing in here may ever be sent.

A personal model is trained without noise on the hospital's patients. No module that sends may import this package
(import-linter): it is started by `fedhpc.run.train` alone, which gets nothing back from it.
"""
