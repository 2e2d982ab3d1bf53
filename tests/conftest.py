"""What holds for every test: torch, wherever it is imported, computes in one thread.

In networks as small as the tests' more threads mostly wait for each other: twenty times longer
where another program has one of two cores.
"""

import os

# At import, before the conftests of the folders below import torch: it reads this only once.
os.environ["OMP_NUM_THREADS"] = "1"
