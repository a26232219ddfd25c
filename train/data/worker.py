"""What a process that reads files does when its run is interrupted. No JAX here."""

import multiprocessing
import os
import signal
import threading


def live_and_die_with_the_run(worker: int, workers: int) -> None:
    """Prepares a worker process: it takes no notice of signals to stop, and ends when the run itself is gone, however that went.

    Ctrl-C and batch systems signal all processes of a run; the run is to finish its step and save, and needs its readers until then.
    Killed outright, a run cannot end its workers, and they would wait for it for ever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    # Not by a change of os.getppid(): a run killed while this process was still starting is never seen as its parent.
    run = multiprocessing.parent_process()
    assert run is not None, "a worker process is started by multiprocessing"
    run.join()
    os._exit(0)
