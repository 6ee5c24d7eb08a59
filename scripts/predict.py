#!/usr/bin/env python
"""Score patches without labels: the command `pcam predict`."""

from pcam.commands.predict import main

if __name__ == "__main__":
    main()
