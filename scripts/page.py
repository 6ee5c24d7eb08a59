#!/usr/bin/env python
"""Open a page to try a network: the command `pcam page`."""

from pcam.commands.page import main

if __name__ == "__main__":
    main()
