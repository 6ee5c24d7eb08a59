"""The commands: one module each, with a plain function that a notebook can call too.

The modules import what takes time only when a command runs, so that `--help` and a wrong option answer at once.
"""
