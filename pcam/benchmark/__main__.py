"""The process of one contestant; `race` starts it, with the number of the pipe to it."""

import sys
from multiprocessing.connection import Connection

from pcam.benchmark.race import take_part

if __name__ == "__main__":
    take_part(Connection(int(sys.argv[1])))
