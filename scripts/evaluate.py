#!/usr/bin/env python
"""Measure trained classifiers on a split, and compare them: the command `pcam evaluate`."""

from pcam.commands.evaluate import main

if __name__ == "__main__":
    main()
