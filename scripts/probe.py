#!/usr/bin/env python
"""Learn a linear unit on the embeddings of a frozen network: the command `pcam probe`."""

from pcam.commands.probe import main

if __name__ == "__main__":
    main()
