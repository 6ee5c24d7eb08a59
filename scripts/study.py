#!/usr/bin/env python
"""Run a study: the command `pcam study`."""

from pcam.commands.study import main

if __name__ == "__main__":
    main()
