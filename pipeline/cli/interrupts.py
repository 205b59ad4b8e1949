"""Ctrl-C and SIGTERM end a command wherever they find it, within finalizers too."""

import signal
import sys
import threading

__all__ = ["heed"]

_SOON = 0.05  # seconds after which an interrupt that was lost is sent again


def heed() -> None:
    """Have SIGTERM end this process as Ctrl-C does, and an interrupt that falls into a finalizer be heeded too.

    What stops containers ends a run as Ctrl-C does, its lease freed; the first process of a container would not even
    notice a signal that it has no handler for. `tilecov serve` sets its own.

    An interrupt is an exception in whatever the main thread is doing, and none can leave a finalizer or a weak
    reference's callback: Python would print "Exception ignored in ... KeyboardInterrupt" and the run would go on.
    Those of Dask's futures, one a task, even wait for a system call.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    others = sys.unraisablehook

    def send_again(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            others(lost)
            return
        timer = threading.Timer(_SOON, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = send_again
