#!/usr/bin/env python
"""Fetch, check and pack PatchCamelyon, or make synthetic patches: the command `pcam prepare_data`."""

from pcam.commands.prepare_data import main

if __name__ == "__main__":
    main()
