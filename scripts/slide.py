#!/usr/bin/env python
"""Score whole-slide images: the command `pcam slide`."""

from pcam.commands.slide import main

if __name__ == "__main__":
    main()
