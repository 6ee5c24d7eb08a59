#!/usr/bin/env python
"""Score patches without labels, or a larger image: the command `pcam predict`."""

from pcam.commands.predict import main

if __name__ == "__main__":
    main()
