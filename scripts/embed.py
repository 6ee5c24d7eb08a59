#!/usr/bin/env python
"""Compute the embeddings of patches by a frozen network: the command `pcam embed`."""

from pcam.commands.embed import main

if __name__ == "__main__":
    main()
