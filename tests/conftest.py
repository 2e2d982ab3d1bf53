"""What holds for every test: Ctrl-C is heard, and torch computes in one thread.

In networks as small as the tests' more threads mostly wait for each other: twenty times longer
where another program has one of two cores.
"""

import os
import signal

# At import, before the conftests of the folders below import torch: it reads this only once.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell lets what it runs in the background ignore Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
