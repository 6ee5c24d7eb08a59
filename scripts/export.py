#!/usr/bin/env python
"""Write a run's classifier as a file for other programs: the command `pcam export`."""

from pcam.commands.export import main

if __name__ == "__main__":
    main()
