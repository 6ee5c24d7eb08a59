#!/usr/bin/env python
"""Train a classifier of PatchCamelyon's patches: the command `pcam train`."""

from pcam.commands.train import main

if __name__ == "__main__":
    main()
