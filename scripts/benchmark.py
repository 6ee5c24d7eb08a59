#!/usr/bin/env python
"""Measure speed against what others do: the command `pcam benchmark`."""

from pcam.commands.benchmark import main

if __name__ == "__main__":
    main()
