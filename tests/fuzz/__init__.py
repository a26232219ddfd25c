"""A fuzzer over every kind of file and text that this project reads from others.

    python -m tests.fuzz --minutes 60 [--seed N] [--only KIND]      python -m tests.fuzz replay FILE

`kinds/` says what is read and how, `damage.py` and its helpers what is done to valid seeds, `contract.py` what must hold whatever comes
of it. Inputs run in processes of their own (`worker.py`), so that a native library that aborts is a finding and not the end.
"""
