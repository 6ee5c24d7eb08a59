#!/usr/bin/env python
"""Average the weights of several runs into one network: the command `pcam average`."""

from pcam.commands.average import main

if __name__ == "__main__":
    main()
