"""The process of one contestant. A race starts it with the file descriptor of its pipe to the race."""

import sys
from multiprocessing.connection import Connection

from pcam.benchmark.race import take_part

if __name__ == "__main__":
    take_part(Connection(int(sys.argv[1])))
