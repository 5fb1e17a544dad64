"""What all tests share: rounds and seeds, how hypothesis explores, and that programs heed Ctrl-C.

By default its examples are the same in every run, so a red build can be repeated by anyone.
`HYPOTHESIS_PROFILE=explore` draws fresh ones, and more of them.
"""

import os
import signal

from hypothesis import settings

pytest_plugins = ["pytester", "tests.rounds"]

# No deadline: on a busy machine a slow example says nothing about the code.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", max_examples=2_000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Run in the background of a script, we were told to ignore Ctrl-C, and every program we start would be too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
