#!/usr/bin/env python
"""Show where in a patch a classifier finds evidence: the command `pcam explain`."""

from pcam.commands.explain import main

if __name__ == "__main__":
    main()
